"""What `jora plan` says, held to programs whose answer is known."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jora_tasks.errors import InputError
from jora_tasks.planning import parse_mesh
from jora_tasks.spec import LoraConfig, MeshConfig, ModelConfig, TrainConfig
from jora_tasks.trainer.load import load_model
from jora_tasks.trainer.mesh import make_mesh
from jora_tasks.trainer.optimizer import init_optimizer
from jora_tasks.trainer.plan import Request, plan
from jora_tasks.trainer.shapes import SHAPES, shape_of


def request(model, target="cpu:4", mesh=MeshConfig(tensor=2, sequence=2), length=64, **changes):  # noqa: B008
    training = TrainConfig(batch_size=changes.pop("batch_size", 1), mesh=mesh)
    return Request(
        model=str(model),
        target=target,
        sequence_length=length,
        lora=LoraConfig(r=4),
        training=training,
        weights=ModelConfig(**changes),
    )


def per_device(tree):
    leaves = [leaf for leaf in jax.tree.leaves(tree)]
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)


def test_arguments_are_the_bytes_that_a_device_then_holds(tiny_model):
    folder = tiny_model()
    found = plan(request(folder))
    mesh = make_mesh(MeshConfig(tensor=2, sequence=2))
    model = load_model(folder, lora=LoraConfig(r=4), mesh=mesh)
    held = {
        "base": per_device(model.base),
        "adapter": per_device(model.lora),
        "optimizer": per_device(init_optimizer(model, TrainConfig(), 1000)),
    }
    assert found["arguments_per_device"] == held
    batch = 64 * 4 + 8 * (4 + 4 + 1)  # tokens; positions, targets and marks
    size = found["bytes_per_device"]
    assert abs(size["arguments"] - sum(held.values()) - batch - 4) <= 1024  # the compiler may align
    assert size["total"] >= size["arguments"] + size["temporaries"] > size["arguments"]
    assert found["fits"] is None and found["devices"] == 4
    assert found["collectives"]["all-gather"]["count"] > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "tpu:v9:2x2"}, "--target 'tpu:v9:2x2' is not known"),
        ({"model": "llama-9"}, "--model 'llama-9' is neither a folder nor one of llama-2-7b"),
        ({"mesh": MeshConfig(tensor=8)}, "tensor 8 needs 8 devices, but 4"),
        ({"mesh": MeshConfig(tensor=4), "model": "smollm2-135m"}, "num_attention_heads 9"),
        ({"mesh": MeshConfig(fsdp=4), "model": "llama-2-7b"}, "--batch-size 1 does not split"),
    ],
)
def test_what_cannot_be_planned_is_said(changes, words):
    with pytest.raises(InputError, match=words):
        plan(request(**{"model": "llama-2-7b", **changes}))


def test_mesh_as_text():
    assert parse_mesh("tensor=4, sequence=2") == MeshConfig(tensor=4, sequence=2)
    for text in ("tensor", "pipeline=2", "tensor=2,tensor=2", "tensor=0"):
        with pytest.raises(InputError, match="--mesh"):
            parse_mesh(text)


@pytest.mark.parametrize("name", SHAPES)
def test_known_shapes_have_the_published_number_of_weights(name):
    from jora_tasks.trainer.parameters import describe

    billions = sum(jnp.prod(jnp.array(one.shape, float)) for one in describe(shape_of(name)).values()) / 1e9
    published = {
        "llama-2-7b": 6.738,
        "llama-2-13b": 13.016,
        "llama-2-70b": 68.977,
        "llama-3.1-8b": 8.030,
        "llama-3.1-70b": 70.554,
        "qwen2.5-7b": 7.616,
        "gemma-2-9b": 9.242,
        "smollm2-135m": 0.1345,
    }[name]
    assert abs(billions - published) < 6e-4


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler (libtpu)")
def test_a_real_chip_holds_llama_2_7b_in_little():
    options = "--model llama-2-7b --target tpu:v5e:2x2 --mesh tensor=4 --batch-size 1 --sequence-length 512"
    settings = "--set model.dtype=bfloat16 --json"
    command = [sys.executable, "-m", "jora_tasks.cli", "plan", *options.split(), *settings.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes_per_device"]["total"] <= 3_800e6
    assert found["fits"] is True and found["device_kind"] == "TPU v5 lite"
