"""A quantised base in use: loaded, split over devices, trained over, resumed and handed to PEFT."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_tasks.errors import InputError
from jora_tasks.spec import LoraConfig, MeshConfig, TrainConfig
from jora_tasks.trainer.batches import Batch
from jora_tasks.trainer.config import parse_config
from jora_tasks.trainer.data import Dataset, Example
from jora_tasks.trainer.fingerprint import fingerprint
from jora_tasks.trainer.load import abstract_base, load_model
from jora_tasks.trainer.lora import lora_shapes
from jora_tasks.trainer.mesh import make_mesh
from jora_tasks.trainer.optimizer import make_optimizer
from jora_tasks.trainer.quantize import NF4, Int8
from jora_tasks.trainer.step import make_step
from jora_tasks.trainer.train import train_lora

KINDS = {"int8": Int8, "nf4": NF4}
LORA = LoraConfig(r=4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_projections_alone_are_quantised_from_the_checkpoint_as_it_is(tiny_model, kind):
    folder = tiny_model("qwen2")
    exact = load_model(folder).base
    base = load_model(folder, "bfloat16", quantization=kind).base
    assert isinstance(base["layers"].pop("q_proj")["weight"], KINDS[kind])
    down = base["layers"].pop("down_proj")["weight"]
    expected = jax.jit(KINDS[kind].of)(exact["layers"]["down_proj"]["weight"])
    jax.tree.map(np.testing.assert_array_equal, down, expected)
    assert base["layers"]["k_proj"]["bias"].dtype == base["embed"].dtype == base["head"].dtype == jnp.bfloat16
    assert base["layers"]["input_norm"]["weight"].dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_what_is_loaded_is_as_announced(tiny_model, kind):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    model = load_model(tiny_model(), "bfloat16", mesh=mesh, quantization=kind)
    announced = abstract_base(model.config, "bfloat16", kind, mesh)
    found = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), model.base)
    assert found == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), announced)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mesh_changes_neither_codes_nor_logits(tiny_model, tokens, relative, kind):
    folder = tiny_model()  # intermediate size 96: its last block of 64 is half full
    alone = load_model(folder, quantization=kind)
    split = load_model(folder, mesh=make_mesh(MeshConfig(fsdp=2, tensor=4)), quantization=kind)
    jax.tree.map(np.testing.assert_array_equal, split.base, alone.base)
    assert fingerprint(split.base) == fingerprint(alone.base) != fingerprint(load_model(folder).base)
    codes = split.base["layers"]["gate_proj"]["weight"].codes
    assert codes.addressable_shards[0].data.size == codes.size / 8
    assert relative(split.logits(tokens), alone.logits(tokens)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_floats_that_the_codes_stand_for(tiny_model, tokens, relative, kind):
    model = load_model(tiny_model("qwen2"), quantization=kind)
    floats = jax.tree.map(
        lambda leaf: leaf.dequantise() if isinstance(leaf, Int8 | NF4) else leaf,
        model.base,
        is_leaf=lambda leaf: isinstance(leaf, Int8 | NF4),
    )
    assert relative(model.logits(tokens), replace(model, base=floats).logits(tokens)) < 1e-5


def test_unknown_quantisation_is_refused(tiny_model):
    with pytest.raises(InputError, match="quantization 'int4' is not supported; use one of none, int8, nf4"):
        load_model(tiny_model(), quantization="int4")


def test_no_step_ever_holds_the_float_weights():
    """Beyond what the same step with float weights needs: four matrices, of the 16 x 7 there are."""
    config = parse_config(
        {"model_type": "llama", "vocab_size": 64, "hidden_size": 256, "intermediate_size": 704,
         "num_hidden_layers": 16, "num_attention_heads": 4}
    )  # fmt: skip
    lora, training = LoraConfig(r=2, target_modules=("q_proj", "down_proj")), TrainConfig()
    shapes = lora_shapes(config, lora)
    adapter = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    state = jax.eval_shape(make_optimizer(training, 10).init, adapter)
    scored = jnp.zeros((1, 1, 8), jnp.int32)
    batch = Batch(jnp.zeros((1, 1, 64), jnp.int32), scored, scored, scored.astype(bool))

    def temporary(quantization):
        step = jax.jit(make_step(config, lora, training, 10), donate_argnums=(0, 1))
        base = abstract_base(config, quantization=quantization)
        return step.lower(adapter, state, base, batch, jnp.int32(0)).compile().memory_analysis()

    matrix, plain = 256 * 704 * 4, temporary("none")
    for kind, share in (("int8", 0.3), ("nf4", 0.2)):
        found = temporary(kind)
        assert found.temp_size_in_bytes < plain.temp_size_in_bytes + 4 * matrix
        assert found.argument_size_in_bytes < share * plain.argument_size_in_bytes


def dataset(examples=12):
    random = np.random.default_rng(0)
    return Dataset(
        tuple(Example.make(str(i), random.integers(0, 96, 24), prompt_length=12) for i in range(examples))
    )


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """``trained(dtype, quantization)`` → an adapter of 9 updates."""
    made = {}

    def train(dtype: str, quantization: str, **options) -> Path:
        key = (dtype, quantization)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("trained") / "adapter"
            training = TrainConfig(epochs=3, learning_rate=0.003)
            train_lora(
                tiny_model(), dataset(), LORA, training,
                output=made[key], base_name="tiny", dtype=dtype, quantization=quantization,
            )  # fmt: skip
        return made[key]

    return train


@pytest.mark.parametrize(
    ("dtype", "kind", "bound"),
    [
        ("bfloat16", "none", 0.02),
        ("float32", "int8", 0.02),
        ("bfloat16", "nf4", 0.15),
    ],
)
def test_losses_fall_as_over_float_weights(trained, dtype, kind, bound):
    expected, found = losses(trained("float32", "none")), losses(trained(dtype, kind))
    assert expected[-1] < 0.9 * expected[0]
    assert max(abs(np.array(found) / expected - 1)) < bound


def test_peft_loads_the_adapter_and_the_card_names_the_base(
    trained, tiny_model, tokens, torch_logits, relative
):
    adapter = trained("bfloat16", "nf4")
    assert "| Base in training | bfloat16, projections in NF4 |" in (adapter / "README.md").read_text()
    ours = load_model(tiny_model(), adapter=adapter).logits(tokens)
    assert relative(ours, torch_logits(tiny_model(), tokens, adapter)) < 1e-4


def test_a_stopped_run_goes_on_with_the_same_losses(trained, tiny_model, tmp_path):
    class Stop(Exception):
        pass

    def stop(metrics):
        if metrics["step"] == 5:
            raise Stop

    def train(quantization, on_step=None):
        train_lora(
            tiny_model(), dataset(), LORA, TrainConfig(epochs=3, learning_rate=0.003, checkpoint_every=2),
            output=tmp_path / "adapter", work=tmp_path / "work", base_name="tiny", dtype="bfloat16",
            quantization=quantization, on_step=on_step,
        )  # fmt: skip

    with pytest.raises(Stop):
        train("nf4", stop)
    with pytest.raises(InputError, match="other base weights"):
        train("int8")
    train("nf4")
    whole = trained("bfloat16", "nf4")
    assert losses(tmp_path / "adapter") == losses(whole)
    name = "adapter_model.safetensors"
    assert (tmp_path / "adapter" / name).read_bytes() == (whole / name).read_bytes()
