"""Which policy a setting stands for, and that the one which keeps most and fits is taken."""

from __future__ import annotations

import os
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jora_tasks.spec import LoraConfig
from jora_tasks.trainer import layer, memory, model
from jora_tasks.trainer.load import load_model
from jora_tasks.trainer.memory import GPU_SHARE, leaves_room, program_bytes, take_gpu_memory
from jora_tasks.trainer.remat import choices, compile_keeping_most

ALL = ("none", "attention", "full", "offload")


@pytest.mark.parametrize(
    ("platform", "short", "long"),
    [("cpu", ("none",), ("full",)), ("tpu", ("attention",), ("full",)), ("gpu", ALL, ALL)],
)
def test_what_auto_stands_for(platform, short, long):
    assert (choices("auto", False, platform), choices("auto", True, platform)) == (short, long)
    assert all(choices(named, True, platform) == (named,) for named in ALL)


@pytest.fixture
def lower(tiny_model):
    loaded = load_model(tiny_model(num_hidden_layers=4), lora=LoraConfig(r=4))
    tokens = jnp.ones((2, 64), jnp.int32)

    def lower(policy):
        def loss(lora):
            return model.hidden_states(
                loaded.config, loaded.lora_config, loaded.base, lora, tokens, remat=policy
            ).sum()

        return jax.jit(jax.grad(loss)).lower(loaded.lora)

    return lower


def test_the_program_that_keeps_most_and_fits_is_taken(lower):
    policies = ("none", "attention", "full")
    compiled = {policy: lower(policy).compile() for policy in policies}
    sizes = {policy: program_bytes(compiled[policy].memory_analysis()) for policy in policies}
    assert sizes["none"] > sizes["attention"] > sizes["full"]

    def taken(limit):
        def again(policy):
            return SimpleNamespace(compile=lambda _: compiled[policy])

        policy, program = compile_keeping_most(policies, again, partial(leaves_room, limit=limit))
        assert program is compiled[policy]
        return policy

    assert [taken(size / memory.ROOM + 1) for size in sizes.values()] == list(policies)
    assert taken(1) == "full"  # the last is left to the check that names the example, if it does not fit
    assert taken(None) == "none"


@pytest.mark.parametrize(("status", "passed_on"), [("RESOURCE_EXHAUSTED", False), ("INTERNAL", True)])
def test_a_compiler_that_has_no_memory_for_one_policy_is_asked_for_the_next(lower, status, passed_on):
    def refuse(options):
        raise jax.errors.JaxRuntimeError(f"{status}: 17.2G of 16.0G")

    def first_refused(policy):
        return SimpleNamespace(compile=refuse) if policy == "none" else lower(policy)

    attempt = partial(compile_keeping_most, ("none", "full"), first_refused, lambda _: True)
    if passed_on:
        with pytest.raises(jax.errors.JaxRuntimeError, match=status):
            attempt()
    else:
        assert attempt()[0] == "full"


@pytest.mark.parametrize("policy", ALL)
def test_long_rows_are_worked_on_in_chunks_where_a_policy_keeps_little(lower, policy, monkeypatch):
    """Chunks make a layer's products again in the backward pass, whatever should be kept."""
    whole = lower(policy).as_text()
    monkeypatch.setattr(layer, "CHUNK", 16)
    monkeypatch.setattr(layer, "LONG", 32)
    assert (lower(policy).as_text() == whole) == (policy in ("none", "attention"))


@pytest.mark.parametrize("named", [None, "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE"])
def test_training_takes_a_gpus_memory_unless_told_otherwise(monkeypatch, named):
    for name in ("MEM_FRACTION", "PREALLOCATE", "ALLOCATOR"):
        monkeypatch.delenv(f"XLA_PYTHON_CLIENT_{name}", raising=False)
    if named:
        monkeypatch.setenv(named, "0.5")
    before = dict(os.environ)
    take_gpu_memory()
    added = {name: value for name, value in os.environ.items() if name not in before}
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert added == ({} if named else {"XLA_PYTHON_CLIENT_MEM_FRACTION": str(GPU_SHARE)})
