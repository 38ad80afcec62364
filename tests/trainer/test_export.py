from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jora_tasks.errors import InputError
from jora_tasks.spec import PROJECTIONS, LoraConfig
from jora_tasks.trainer.export import load_adapter, save_adapter
from jora_tasks.trainer.load import load_model
from jora_tasks.trainer.targets import disagreement

BASE = "someone/tiny"
LORA = {"r": 4, "lora_alpha": 12, "lora_dropout": 0.1}
KEY = "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.weight"


def adapted(folder, **changes):
    """A model whose adapter is random and large enough to matter, B included."""
    model = load_model(folder, lora=LoraConfig(**{**LORA, **changes}))
    leaves, tree = jax.tree.flatten(model.lora)
    rng = np.random.default_rng(0)
    drawn = [x + 0.1 * rng.standard_normal(x.shape).astype(np.float32) for x in leaves]
    return dataclasses.replace(model, lora=jax.tree.unflatten(tree, drawn))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"lora_alpha": 2.5, "r": 3},
        *({"target_modules": (name,)} for name in PROJECTIONS),
    ],
    ids=str,
)
def test_peft_gives_the_same_logits(tiny_model, torch_logits, relative, tokens, tmp_path, changes):
    folder = tiny_model()
    model = adapted(folder, **changes)
    save_adapter(model, tmp_path / "adapter", BASE)
    logits = model.logits(tokens)
    assert relative(logits, load_model(folder).logits(tokens)) > 1e-2
    assert relative(logits, torch_logits(folder, tokens, tmp_path / "adapter")) < 1e-4
    again = load_model(folder, adapter=tmp_path / "adapter")
    assert again.lora_config.scale == model.lora_config.scale
    assert disagreement(model.config, again.lora_config, model.lora_config) is None
    np.testing.assert_array_equal(again.logits(tokens), logits)


@pytest.mark.parametrize("targets", [["v_proj", "q_proj"], "all-linear"], ids=str)
def test_adapter_made_by_peft_loads(tiny_model, torch_logits, relative, tokens, tmp_path, targets):
    import peft
    import torch
    import transformers

    folder = tiny_model()
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(
        r=6, lora_alpha=9, use_rslora=True, target_modules=targets, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(base, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path)
    found = load_model(folder, adapter=tmp_path)
    assert set(found.lora) == set(PROJECTIONS if targets == "all-linear" else targets)
    assert relative(found.logits(tokens), torch_logits(folder, tokens, tmp_path)) < 1e-4


def test_folder_is_explicit_and_the_same_every_time(tiny_model, tmp_path):
    model = adapted(tiny_model(), target_modules=("down_proj", "q_proj"))
    one, two = (save_adapter(model, tmp_path / name, BASE) for name in ("one", "two"))
    save_adapter(model, two, BASE)
    files = sorted(file.name for file in two.iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    assert [(one / name).read_bytes() for name in files] == [(two / name).read_bytes() for name in files]
    settings = json.loads((one / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["q_proj", "down_proj"]
    assert settings["base_model_name_or_path"] == BASE
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 12, 0.1)
    tensors = load_file(one / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 3
    assert tensors[KEY.format(2)].shape == (4, 64) and tensors[KEY.format(2)].dtype == np.float32


def test_no_local_path_gets_into_an_adapter(tiny_model, tmp_path):
    with pytest.raises(InputError, match="base_name"):
        save_adapter(adapted(tiny_model()), tmp_path / "adapter", str(tmp_path))
    assert not (tmp_path / "adapter").exists()


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    return save_adapter(adapted(tiny_model()), tmp_path_factory.mktemp("saved"), BASE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "IA3"),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("modules_to_save", ["score"]),
        ("rank_pattern", {"q_proj": 8}),
        ("alpha_pattern", {"q_proj": 8}),
        ("layers_to_transform", [7]),
        ("target_modules", None),
        ("target_modules", ["lm_head"]),
        ("target_modules", ".*q_prj"),
        ("exclude_modules", ["q_proj"]),
        ("init_lora_weights", "pissa"),
        ("trainable_token_indices", [1]),
        ("r", 0),
    ],
)
def test_what_cannot_be_applied_is_refused(saved, tiny_model, tmp_path, field, value):
    settings = json.loads((saved / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, field: value}))
    (tmp_path / "adapter_model.safetensors").write_bytes((saved / "adapter_model.safetensors").read_bytes())
    with pytest.raises(InputError, match=rf"adapter_config\.json: {field}"):
        load_model(tiny_model(), adapter=tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(KEY.format(1)), r"no tensor .*layers\.1.*asks for"),
        (
            lambda tensors: tensors.update({KEY.format(0): np.ones((5, 64), np.float32)}),
            r"\[5, 64\].*\[4, 64\]",
        ),
        (
            lambda tensors: tensors.update({KEY.format(7): np.ones((4, 64), np.float32)}),
            r"layers\.7.*no place",
        ),
        (lambda tensors: tensors.update({"base_model.model.lm_head.lora_A.weight": np.ones(1)}), "lm_head"),
        (lambda tensors: tensors[KEY.format(0)].fill(np.nan), "NaN"),
        (lambda tensors: tensors.clear(), "no tensor"),
    ],
    ids=["missing layer", "rank", "too many layers", "unknown module", "NaN", "empty"],
)
def test_tensors_that_do_not_fit_are_refused(saved, tiny_model, tmp_path, change, words):
    tensors = load_file(saved / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((saved / "adapter_config.json").read_bytes())
    with pytest.raises(InputError, match=words):
        load_model(tiny_model(), adapter=tmp_path)


def test_missing_and_truncated_adapter_files(saved, tiny_model, tmp_path):
    config = load_model(tiny_model()).config
    with pytest.raises(InputError, match=r"adapter_config\.json is missing"):
        load_adapter(tmp_path, config)
    (tmp_path / "adapter_config.json").write_bytes((saved / "adapter_config.json").read_bytes())
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is missing"):
        load_adapter(tmp_path, config)
    whole = (saved / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(InputError, match="truncated or damaged"):
        load_adapter(tmp_path, config)
