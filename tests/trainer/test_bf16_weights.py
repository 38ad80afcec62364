"""bf16 matrices in f32 products, as on CPUs with units for bf16: the same values, errors of f32's size."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jora_tasks.spec import LoraConfig, MeshConfig, TrainConfig
from jora_tasks.trainer import load
from jora_tasks.trainer.data import Dataset, Example
from jora_tasks.trainer.fingerprint import fingerprint
from jora_tasks.trainer.frozen import matmul, matmul_transposed, row_squares
from jora_tasks.trainer.load import load_model
from jora_tasks.trainer.mesh import make_mesh
from jora_tasks.trainer.quantize import BF16, base_in_words
from jora_tasks.trainer.train import train_lora

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def bf16_folder(tiny_model, tmp_path_factory):
    """A model whose file is in bf16, as most published ones are."""
    folder = shutil.copytree(tiny_model(), tmp_path_factory.mktemp("bf16") / "model")
    tensors = {name: value.astype(ml_dtypes.bfloat16) for name, value in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)
    return folder


@pytest.fixture
def cpu_that(monkeypatch):
    """``cpu_that(multiplies_bf16)``: loading believes it is on such a CPU."""
    return lambda does: monkeypatch.setattr(load, "multiplies_bf16", lambda: does)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1e-20, 1.0, 1e20]), st.integers(1, 700))
def test_products_err_no_more_than_sums_in_f32_do(seed, size, inner):
    random = np.random.default_rng(seed)
    x = (random.standard_normal((5, inner)) * size).astype(np.float32)
    weight = random.standard_normal((7, inner)).astype(ml_dtypes.bfloat16)
    kept = BF16.of(jnp.asarray(weight, jnp.float32))
    np.testing.assert_array_equal(kept.dequantise(), weight.astype(np.float32))
    exact, wide = x.astype(np.float64), weight.astype(np.float64)
    bound = 2.0**-16 * (np.abs(exact) @ np.abs(wide.T))  # of what the terms add up to
    assert (np.abs(np.asarray(jax.jit(matmul)(x, kept), np.float64) - exact @ wide.T) <= bound).all()
    dy = (random.standard_normal((5, 7)) * size).astype(np.float32)
    found = np.asarray(jax.jit(matmul_transposed)(dy, kept), np.float64)
    exact = dy.astype(np.float64)
    assert (np.abs(found - exact @ wide) <= 2.0**-16 * (np.abs(exact) @ np.abs(wide))).all()


def test_a_bf16_part_alone_would_not_pass():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 300)), jnp.float32)
    kept = BF16.of(jnp.asarray(np.random.default_rng(1).standard_normal((7, 300)), jnp.bfloat16))
    exact = np.asarray(x, np.float64) @ np.asarray(kept.dequantise(), np.float64).T
    alone = np.asarray(matmul(x.astype(jnp.bfloat16).astype(jnp.float32), kept), np.float64)
    assert np.abs(alone - exact).max() > 100 * np.abs(np.asarray(matmul(x, kept)) - exact).max()


def test_it_is_a_matter_of_keeping_only(bf16_folder, cpu_that, tokens, relative):
    cpu_that(False)
    plain = load_model(bf16_folder)
    cpu_that(True)
    kept = load_model(bf16_folder)
    split = load_model(bf16_folder, mesh=make_mesh(MeshConfig(fsdp=2, tensor=4)))
    weight = kept.base["layers"]["q_proj"]["weight"]
    assert (
        isinstance(weight, BF16) and weight.bits.nbytes * 2 == plain.base["layers"]["q_proj"]["weight"].nbytes
    )
    np.testing.assert_array_equal(weight.dequantise(), plain.base["layers"]["q_proj"]["weight"])
    np.testing.assert_allclose(
        row_squares(weight), row_squares(plain.base["layers"]["q_proj"]["weight"]), rtol=1e-6
    )
    assert fingerprint(kept.base) == fingerprint(split.base) == fingerprint(plain.base)
    assert base_in_words(kept.base) == base_in_words(plain.base) == "float32"
    assert relative(kept.logits(tokens), plain.logits(tokens)) < 1e-4
    assert relative(split.logits(tokens), kept.logits(tokens)) < 1e-4


def test_other_files_types_and_quantisations_are_kept_as_before(bf16_folder, tiny_model, cpu_that):
    cpu_that(True)
    for model in (
        load_model(tiny_model()),
        load_model(bf16_folder, "bfloat16"),
        load_model(bf16_folder, quantization="int8"),
    ):
        assert not isinstance(model.base["layers"]["q_proj"]["weight"], BF16)


def test_processes_whose_cpus_may_differ_keep_the_same(bf16_folder, cpu_that, monkeypatch):
    cpu_that(True)
    monkeypatch.setattr(load, "several", lambda: True)
    assert not isinstance(load_model(bf16_folder).base["layers"]["q_proj"]["weight"], BF16)


class Stopped(Exception):
    pass


def test_training_goes_on_where_the_other_kind_of_cpu_stopped(bf16_folder, cpu_that, tmp_path):
    rows = np.random.default_rng(0).integers(0, 96, (8, 24))
    dataset = Dataset(tuple(Example.make(str(i), row, prompt_length=12) for i, row in enumerate(rows)))
    training = TrainConfig(epochs=2, batch_size=2, checkpoint_every=1, learning_rate=1e-3)

    def train(name, on_step=None):
        folders = {"output": tmp_path / name, "work": tmp_path / f"{name}-work"}
        train_lora(bf16_folder, dataset, LoraConfig(r=4), training, on_step=on_step, **folders)

    def stop(metrics):
        if metrics["step"] == 5:
            raise Stopped

    cpu_that(False)
    train("whole")
    with pytest.raises(Stopped):
        train("parted", stop)
    cpu_that(True)
    train("parted")
    whole, parted = (_losses(tmp_path / name) for name in ("whole", "parted"))
    assert len(whole) == len(parted) == 8
    assert parted[:4] == whole[:4]  # made on the first CPU, not again
    np.testing.assert_allclose(parted, whole, rtol=1e-4)


def _losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]
