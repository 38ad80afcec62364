"""Every family against transformers and PEFT, on tiny random models whose rows outgrow the window."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_tasks.evaluation.generation import generate
from jora_tasks.spec import LoraConfig, MeshConfig
from jora_tasks.trainer.config import parse_config, read_config
from jora_tasks.trainer.decode import decode_step, prefill
from jora_tasks.trainer.export import save_adapter
from jora_tasks.trainer.load import load_model
from jora_tasks.trainer.loss import answer_loss
from jora_tasks.trainer.merge import merge_adapter
from jora_tasks.trainer.mesh import make_mesh
from jora_tasks.trainer.model import embed_tokens, head_weight, hidden_states

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA = {"head_dim": 16, "tie_word_embeddings": True, "rms_norm_eps": 1e-6}
WINDOWS = {"sliding_window": 11, "query_pre_attn_scalar": 24, "num_hidden_layers": 4}
GEMMA_3 = {
    **GEMMA,
    **WINDOWS,
    "layer_types": [*["sliding_attention"] * 2, "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
}
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 2": ("llama", {}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3}),
    "smollm2": ("llama", {"tie_word_embeddings": True, "num_attention_heads": 4, "num_key_value_heads": 2}),
    "mistral": ("mistral", {"sliding_window": 11}),
    "qwen2": ("qwen2", {}),
    "qwen2.5 window": ("qwen2", {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 2}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma": ("gemma", GEMMA),
    "gemma 2": (
        "gemma2",
        {**GEMMA, **WINDOWS, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 3.0},
    ),
    "gemma 3": ("gemma3_text", GEMMA_3),
    "gemma 3 with images": (
        "gemma3",
        {
            "text_config": {**SIZES, **GEMMA_3},
            "vision_config": {**SIZES, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14},
            "image_token_index": 95,
            "tie_word_embeddings": True,
        },
    ),
    "phi-3": ("phi3", {"sliding_window": 11, "pad_token_id": 0}),
}
LONGROPE = {  # of Phi-3 in texts longer than 16, and only of a part of each head, as in Phi-4-mini
    "pad_token_id": 0,
    "original_max_position_embeddings": 16,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "partial_rotary_factor": 0.75,
        "short_factor": [1.0, 1.1, 1.3],
        "long_factor": [1.5, 2.5, 6.0],
    },
}


@pytest.mark.parametrize("family", ["mistral", "qwen3", "gemma 2", "gemma 3", "phi-3"])
def test_greedy_text_equals_transformers(tiny_model, tokens, family):
    """Prompts of unequal length in one batch, shorter and longer than the window."""
    import torch
    import transformers

    kind, changes = FAMILIES[family]
    folder = tiny_model(kind, **changes)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    prompts = [tokens[0, :30].tolist(), tokens[1, :7].tolist()]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        whole = oracle.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=None,
            pad_token_id=0,
        )
        expected.append(whole[0, len(prompt) :].tolist())
    assert len({tuple(answer) for answer in expected}) == 2 and len(set(expected[0])) > 3
    settings = {"eos_ids": (), "pad_id": 0, "batch_size": 2, "max_new_tokens": 20}
    assert list(generate(load_model(folder), prompts, **settings)) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers_and_adapters_go_to_peft_and_back(
    tiny_model, torch_logits, relative, tokens, tmp_path, family
):
    import peft
    import torch
    import transformers

    kind, changes = FAMILIES[family]
    folder = tiny_model(kind, **changes)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    targets = r".*language_model\.layers\..*_proj" if kind == "gemma3" else "all-linear"
    settings = peft.LoraConfig(r=3, lora_alpha=9, target_modules=targets, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(base, settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_model(folder, adapter=tmp_path / "theirs")
    assert set(model.lora) == set(model.config.projections)
    without = dataclasses.replace(model, lora=jax.tree.map(np.zeros_like, model.lora)).logits(tokens)
    assert relative(without, torch_logits(folder, tokens)) < 3e-5
    logits = model.logits(tokens)
    assert relative(logits, without) > 1e-2
    assert relative(logits, torch_logits(folder, tokens, tmp_path / "theirs")) < 3e-5
    save_adapter(model, tmp_path / "ours", "someone/tiny")
    assert relative(logits, torch_logits(folder, tokens, tmp_path / "ours")) < 3e-5
    merged = merge_adapter(folder, tmp_path / "ours", tmp_path / "merged")
    assert relative(torch_logits(merged, tokens), logits) < 1e-4


@pytest.mark.parametrize("family", ["gemma 2", "phi-3"])
def test_gradients_equal_peft(tiny_model, relative, tokens, tmp_path, family):
    import peft
    import torch
    import transformers

    kind, changes = FAMILIES[family]
    folder = tiny_model(kind, **changes)
    model = load_model(folder, lora=LoraConfig(r=3, lora_alpha=9))
    drawn = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(5), x.shape), model.lora)
    model = dataclasses.replace(model, lora=drawn)
    positions = np.tile(np.arange(4, 39), (3, 1))
    targets = np.take_along_axis(tokens, positions + 1, axis=1)

    def loss(lora):
        parts = (model.config, model.lora_config, model.base, lora, tokens)
        head = head_weight(model.config, model.base, None)
        scored = np.ones(targets.shape, bool)
        return answer_loss(
            hidden_states(*parts), head, positions, targets, scored, model.config.logit_softcap
        )[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(model.lora)

    save_adapter(model, tmp_path, "someone/tiny")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    oracle = peft.PeftModel.from_pretrained(oracle, tmp_path, is_trainable=True)
    logits = oracle(torch.tensor(tokens)).logits[:, 4:39].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(
        logits, torch.tensor(targets).flatten().long(), reduction="sum"
    )
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    ours = {
        f"{layer}.{model.config.projections[name].parent}.{name}.lora_{letter}": one if part == "a" else one.T
        for name, parts in gradient.items()
        for letter, part in (("A", "a"), ("B", "b"))
        for layer, one in enumerate(parts[part])
    }
    theirs = {
        name.removeprefix("base_model.model.model.layers.").replace(".default.weight", ""): one.grad.numpy()
        for name, one in oracle.named_parameters()
        if one.requires_grad
    }
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert relative(ours[name], theirs[name]) < 1e-3, name


@pytest.mark.parametrize("length", [16, 40], ids=["short", "long"])
def test_longrope_over_a_part_of_each_head(tiny_model, torch_logits, relative, tokens, length):
    folder = tiny_model("phi3", **LONGROPE)
    model = load_model(folder)
    assert model.config.rope.rotated(model.config.head_dim) == 6
    assert relative(model.logits(tokens[:, :length]), torch_logits(folder, tokens[:, :length])) < 3e-5


def test_longrope_goes_by_the_text_and_not_by_the_batch(tiny_model, relative, tokens):
    """Rows read in one batch and token by token: 20 + 4 tokens are long, 8 + 4 are not."""
    model = load_model(tiny_model("phi3", **LONGROPE))
    lengths, steps = np.array([20, 8]), 4
    whole = [model.logits(tokens[row : row + 1, : lengths[row] + steps])[0] for row in range(2)]
    parts = (model.config, None, model.base, None)
    advance = jax.jit(lambda new, step, cache: decode_step(*parts, new[:, None], lengths, 24, step, cache))
    logits, cache = jax.jit(lambda rows: prefill(*parts, rows, lengths, steps))(tokens[:2, :24])
    for step in range(steps):
        expected = [whole[row][lengths[row] + step - 1] for row in range(2)]
        assert relative(logits, expected) < 3e-5
        after, cache = advance(tokens[[0, 1], lengths + step], step, cache)
        logits = after[:, 0]


@pytest.mark.parametrize("family", ["gemma 3", "longrope"])
def test_packed_texts_are_as_they_are_alone(tiny_model, relative, tokens, family):
    kind, changes = {**FAMILIES, "longrope": ("phi3", LONGROPE)}[family]
    model = load_model(tiny_model(kind, **changes))
    lengths = (24, 9)
    packed = np.concatenate([tokens[0, :24], tokens[1, :9]])[None]
    positions = np.concatenate([np.arange(24), np.arange(9)])[None]
    segments = np.repeat(np.arange(2), lengths)[None]
    parts = (model.config, None, model.base, None)
    together = np.asarray(hidden_states(*parts, packed, segments, positions=positions))[0]
    for row, part in enumerate((together[:24], together[24:])):
        alone = hidden_states(*parts, tokens[row : row + 1, : lengths[row]])[0]
        assert relative(part, alone) < 3e-5


@pytest.mark.parametrize(
    ("family", "axes"), [("gemma 3", {"data": 2, "fsdp": 2, "tensor": 2}), ("phi-3", {"tensor": 2})]
)
def test_a_mesh_gives_the_gradients_of_one_device(tiny_model, relative, tokens, family, axes):
    kind, changes = FAMILIES[family]
    rows = np.concatenate([tokens, tokens[:1, ::-1]])

    def run(mesh):
        lora = LoraConfig(r=2, lora_alpha=8)
        model = load_model(tiny_model(kind, **changes), lora=lora, seed=3, mesh=mesh)

        def loss(lora):
            parts = (model.config, model.lora_config, model.base, lora, rows)
            return (hidden_states(*parts, mesh=mesh) * np.cos(np.arange(64))).sum()

        moved = jax.tree.map(lambda x: x + 0.03, model.lora)
        return jax.device_get(jax.jit(jax.value_and_grad(loss))(moved))

    (value, gradient), (expected, alone) = run(make_mesh(MeshConfig(**axes))), run(None)
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    assert max(jax.tree.leaves(jax.tree.map(relative, gradient, alone))) < 1e-4


def test_gemma_3_with_images_has_the_settings_of_its_text(tiny_model):
    whole, text = (
        read_config(tiny_model(kind, **changes))
        for kind, changes in (FAMILIES["gemma 3 with images"], FAMILIES["gemma 3"])
    )
    assert whole.nested and dataclasses.replace(whole, nested=False, max_positions=256) == text


def test_an_adapter_of_gemma_3_with_images_leaves_their_reader_alone(tiny_model, tmp_path):
    import peft
    import transformers

    kind, changes = FAMILIES["gemma 3 with images"]
    folder = tiny_model(kind, **changes)
    lora = LoraConfig(r=2, target_modules=("q_proj", "down_proj"), layers_to_transform=(1, 3))
    model = load_model(folder, lora=lora)
    save_adapter(model, tmp_path, "someone/tiny")
    oracle = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(folder), tmp_path
    )
    adapted = {name for name, _ in oracle.named_modules() if name.endswith("lora_A.default")}
    layers = "base_model.model.model.language_model.layers"
    assert adapted == {
        f"{layers}.{layer}.{module}.lora_A.default"
        for layer in (1, 3)
        for module in ("self_attn.q_proj", "mlp.down_proj")
    }
    again = load_model(folder, adapter=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.lora, model.lora)


def test_gemma_scales_its_embedding_by_a_factor_rounded_to_its_type():
    import torch

    sizes = {"hidden_size": 48, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = parse_config({"model_type": "gemma", "vocab_size": 5, "num_key_value_heads": 1, **sizes})
    table = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    base = {"embed": jnp.asarray(table.numpy(), jnp.bfloat16)}
    expected = table.bfloat16() * torch.tensor(48**0.5).bfloat16()  # 6.9375, not 6.9282
    found = embed_tokens(config, base, None, np.arange(5)[None], None)
    np.testing.assert_array_equal(np.asarray(found[0], np.float32), expected.float().numpy())
