from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_tasks.spec import LoraConfig, MeshConfig
from jora_tasks.trainer import layer
from jora_tasks.trainer.config import parse_config, read_config
from jora_tasks.trainer.decode import decode_step, prefill
from jora_tasks.trainer.layer import rope_tables
from jora_tasks.trainer.load import load_model
from jora_tasks.trainer.mesh import make_mesh
from jora_tasks.trainer.model import LanguageModel, head_weight, hidden_states, project_logits
from jora_tasks.trainer.parameters import describe, init_base

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS = {
    "grouped": ("llama", {}),
    "multi-head": ("llama", {"num_key_value_heads": 8}),
    "multi-query": ("llama", {"num_key_value_heads": 1}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "eps 1e-6": ("llama", {"rms_norm_eps": 1e-6}),
    "llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}},
    ),
    "wide heads": ("llama", {"head_dim": 16}),
    "biased": ("llama", {"attention_bias": True}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 8}),
    "qwen2": ("qwen2", {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(tiny_model, torch_logits, relative, tokens, variant):
    kind, changes = VARIANTS[variant]
    folder = tiny_model(kind, **changes)
    model = load_model(folder)
    logits = model.logits(tokens)
    assert logits.dtype == jnp.float32 and logits.shape == (*tokens.shape, 96)
    assert relative(logits, torch_logits(folder, tokens)) < 1e-4


def test_the_bound_sees_a_wrong_eps_theta_or_head_order(tiny_model, relative, tokens):
    """The test above can fail: each of these mistakes moves the logits far beyond its bound."""
    model = load_model(tiny_model())
    right = model.logits(tokens)
    config = model.config
    rope = dataclasses.replace(config.rope, theta=9000.0)
    for wrong in (dataclasses.replace(config, rms_norm_eps=1e-6), dataclasses.replace(config, rope=rope)):
        assert relative(dataclasses.replace(model, config=wrong).logits(tokens), right) > 2e-3
    weight = model.base["layers"]["k_proj"]["weight"].reshape(3, 4, 8, 64)[:, ::-1].reshape(3, 32, 64)
    layers = {**model.base["layers"], "k_proj": {"weight": weight}}
    assert relative(LanguageModel(config, {**model.base, "layers": layers}).logits(tokens), right) > 2e-3


def test_old_spelling_of_rope_scaling_gives_the_same_logits(tiny_model, relative, tokens, tmp_path):
    folder = tiny_model(rope_parameters=LLAMA3)
    shutil.copytree(folder, tmp_path / "old")
    data = json.loads((folder / "config.json").read_text())
    parameters = data.pop("rope_parameters")
    data["rope_theta"] = parameters.pop("rope_theta")
    data["rope_scaling"] = parameters
    (tmp_path / "old" / "config.json").write_text(json.dumps(data))
    assert relative(load_model(tmp_path / "old").logits(tokens), load_model(folder).logits(tokens)) == 0


def test_bf16_base_gives_f32_logits_near_the_exact_ones(tiny_model, relative, tokens):
    model = load_model(tiny_model(), dtype="bfloat16", lora=LoraConfig(r=4))
    assert {x.dtype for x in jax.tree.leaves(model.base)} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(model.lora)} == {jnp.dtype("float32")}
    logits = model.logits(tokens)
    assert logits.dtype == jnp.float32
    assert relative(logits, load_model(tiny_model()).logits(tokens)) < 0.06


def test_rotary_angles_are_exact_at_far_positions():
    config = parse_config(
        {
            "model_type": "llama",
            "vocab_size": 8,
            "hidden_size": 128,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "rope_theta": 500000.0,
        }
    )
    positions = np.array([0, 1, 8191, 131071])
    cos, sin = rope_tables(config.rope, config.head_dim, jnp.asarray(positions))
    angles = positions[:, None] * 500000.0 ** (-np.arange(64) / 64)
    assert cos.dtype == sin.dtype == jnp.float32
    # The largest angle, 131071 radians, has an f32 step of 2**-7.
    np.testing.assert_allclose(cos, np.cos(angles), atol=2e-2)
    np.testing.assert_allclose(cos[:2], np.cos(angles[:2]), atol=1e-6)
    np.testing.assert_allclose(sin[:2], np.sin(angles[:2]), atol=1e-6)


def test_padding_changes_no_token(tiny_model, tokens):
    model = load_model(tiny_model())
    lengths = np.array([40, 17, 5])
    mask = np.arange(40) < lengths[:, None]
    run = jax.jit(
        lambda tokens, mask: hidden_states(model.config, None, model.base, None, tokens, mask.astype(int))
    )
    one, other = run(np.where(mask, tokens, 0), mask), run(np.where(mask, tokens, 95), mask)
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(np.asarray(one)[mask], np.asarray(other)[mask])
    unmasked = hidden_states(model.config, None, model.base, None, np.where(mask, tokens, 0))
    np.testing.assert_allclose(np.asarray(one)[mask], np.asarray(unmasked)[mask], atol=1e-5)


def test_remat_changes_no_gradient_and_saves_memory(tiny_model, tokens):
    model = load_model(tiny_model(num_hidden_layers=12), lora=LoraConfig(r=4))

    def compiled(remat):
        def loss(lora):
            return hidden_states(model.config, model.lora_config, model.base, lora, tokens, remat=remat).sum()

        return jax.jit(jax.grad(loss)).lower(model.lora).compile()

    attention, none = compiled("attention"), compiled("none")
    for one, other in zip(*(jax.tree.leaves(run(model.lora)) for run in (attention, none)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * (1 + float(jnp.abs(other).max())))
    used = {run: run.memory_analysis().temp_size_in_bytes for run in (attention, none)}
    assert used[attention] < 0.7 * used[none]
    assert compiled("auto").memory_analysis().temp_size_in_bytes == used[none]  # on a CPU


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("window", [None, 5], ids=["everywhere", "window"])
def test_decoding_some_tokens_at_a_time_equals_the_whole_row(tiny_model, tokens, relative, at_once, window):
    """Rows of unequal length share a cache: logits after each token are those of the row alone."""
    folder = tiny_model("mistral", sliding_window=window) if window else tiny_model()
    model = load_model(folder, lora=LoraConfig(r=4, lora_alpha=64))
    lora = jax.tree.map(lambda x: x + 0.05, model.lora)
    whole = np.asarray(dataclasses.replace(model, lora=lora).logits(tokens))
    lengths, steps = np.array([20, 7, 1]), 6
    padded = np.where(np.arange(32) < lengths[:, None], tokens[:, :32], 95)
    parts = (model.config, model.lora_config, model.base, lora)
    logits, cache = prefill(*parts, padded, lengths, steps)
    rows = np.arange(3)
    assert relative(logits, whole[rows, lengths - 1]) < 1e-5
    advance = jax.jit(lambda new, step, cache: decode_step(*parts, new, lengths, 32, step, cache))
    for step in range(0, steps, at_once):
        places = rows[:, None], lengths[:, None] + step + np.arange(at_once)
        logits, cache = advance(tokens[places], step, cache)
        assert relative(logits, whole[places]) < 1e-5


def test_one_declaration_gives_the_checkpoint_names_and_the_random_start(tiny_model):
    from safetensors import safe_open

    folder = tiny_model(tie_word_embeddings=True, attention_bias=True)
    config = read_config(folder)
    names = set()
    for parameter in describe(config).values():
        layers = range(config.num_hidden_layers) if parameter.axes[0] == "layers" else range(1)
        names |= {parameter.checkpoint_name.format(layer) for layer in layers}
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        assert names == set(file.keys())
    base = init_base(config, jax.random.key(0), "bfloat16")
    loaded = load_model(folder, dtype="bfloat16").base
    assert jax.tree.map(lambda x: (x.shape, x.dtype), base) == jax.tree.map(
        lambda x: (x.shape, x.dtype), loaded
    )
    assert head_weight(config, base, None) is base["embed"]


def test_smollm2_logits_equal_transformers(smollm2_folder, torch_logits, relative):
    tokens = np.random.default_rng(1).integers(0, 49152, (2, 60), dtype=np.int32)
    model = load_model(smollm2_folder)
    logits = model.logits(tokens)
    assert relative(logits, torch_logits(smollm2_folder, tokens)) < 1e-4
    hidden = hidden_states(model.config, None, model.base, None, tokens[:, :8])
    assert relative(project_logits(model.config, model.base, None, hidden), logits[:, :8]) < 1e-4


@pytest.mark.parametrize("axes", [{}, {"tensor": 2, "sequence": 2}], ids=str)
def test_long_rows_in_chunks_change_no_result(monkeypatch, tiny_model, tokens, axes):
    """Layers that work on 8 tokens of each part at a time give what they give at once."""
    lora = LoraConfig(r=4)
    alone = load_model(tiny_model("gemma2", head_dim=8), lora=lora)
    split = load_model(
        tiny_model("gemma2", head_dim=8), lora=lora, mesh=make_mesh(MeshConfig(**axes)) if axes else None
    )

    def gradient(model):
        def loss(lora):
            hidden = hidden_states(
                model.config, lora_config, model.base, lora, tokens, mesh=model.mesh, remat="auto"
            )
            return (hidden * jnp.cos(jnp.arange(hidden.shape[-1]))).sum()

        lora_config = model.lora_config
        shifted = jax.tree.map(lambda x: x + 0.01 * jnp.cos(jnp.arange(x.shape[-1])), model.lora)
        return jax.jit(jax.value_and_grad(loss))(shifted)

    expected = gradient(alone)
    monkeypatch.setattr(layer, "CHUNK", 4)
    monkeypatch.setattr(layer, "LONG", 8)
    assert layer.in_chunks(tokens.shape[1], split.mesh)
    for one, other in zip(*map(jax.tree.leaves, (gradient(split), expected)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * float(jnp.abs(other).max()))
