"""DoRA, chosen layers, expressions and modules trained whole, held to PEFT; LoRA+ to its optimizer."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from jora_tasks.errors import InputError
from jora_tasks.spec import LoraConfig, MeshConfig, TrainConfig
from jora_tasks.trainer.batches import Batch
from jora_tasks.trainer.export import load_adapter, save_adapter
from jora_tasks.trainer.load import load_model
from jora_tasks.trainer.lora import init_lora
from jora_tasks.trainer.merge import merge_adapter
from jora_tasks.trainer.mesh import make_mesh
from jora_tasks.trainer.optimizer import init_optimizer
from jora_tasks.trainer.step import compile_step, place_batch
from jora_tasks.trainer.targets import lora_targets

BOTH = ("embed_tokens", "lm_head")
EVERY_OTHER = r"model\.layers\.[02]\.(self_attn\.[qv]_proj|mlp\.down_proj)"


def moved(model, size=0.1):
    """The model with an adapter that does something everywhere it may."""
    rng = np.random.default_rng(0)
    lora = jax.tree.map(
        lambda x: np.where(x == 0, 0, x) + size * rng.standard_normal(x.shape).astype(np.float32), model.lora
    )
    targets = lora_targets(model.config, model.lora_config)
    for name, layers in targets.items():
        others = [layer for layer in range(model.config.num_hidden_layers) if layer not in layers]
        for part in lora[name].values():
            part[others] = 0
    return dataclasses.replace(model, lora=jax.tree.map(jnp.asarray, lora))


@pytest.mark.parametrize(
    ("settings", "tied"),
    [
        ({"use_dora": True}, False),
        ({"use_dora": True, "use_rslora": True, "target_modules": EVERY_OTHER}, False),
        ({"target_modules": ("o_proj", "up_proj"), "layers_to_transform": (1,)}, False),
        ({"target_modules": ("q_proj",), "modules_to_save": BOTH}, False),
        ({"target_modules": ("q_proj",), "modules_to_save": BOTH}, True),
        ({"use_dora": True, "layers_to_transform": (0, 2), "modules_to_save": ("embed_tokens",)}, True),
    ],
    ids=str,
)
def test_peft_and_transformers_agree(tiny_model, torch_logits, relative, tokens, tmp_path, settings, tied):
    import peft
    import torch
    import transformers

    folder = tiny_model(tie_word_embeddings=tied)
    model = moved(load_model(folder, lora=LoraConfig(r=4, lora_alpha=12, **settings)))
    adapter = save_adapter(model, tmp_path / "adapter", "someone/tiny")
    logits = model.logits(tokens)
    assert relative(logits, torch_logits(folder, tokens)) > 1e-2

    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, adapter).eval()
    with torch.no_grad():
        assert relative(logits, theirs(torch.tensor(tokens)).logits.numpy()) < 1e-4
    theirs.save_pretrained(tmp_path / "again")
    again, tree = load_adapter(tmp_path / "again", model.config)
    assert lora_targets(model.config, again) == lora_targets(model.config, model.lora_config)
    jax.tree.map(np.testing.assert_array_equal, tree, model.lora)

    merged = merge_adapter(folder, adapter, tmp_path / "merged")
    assert relative(torch_logits(merged, tokens), logits) < 1e-4
    expected = theirs.merge_and_unload().state_dict()
    with safe_open(merged / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            torch.testing.assert_close(file.get_tensor(name), expected[name], rtol=1e-5, atol=1e-6)
        assert tied == ("lm_head.weight" not in load_names(folder))
        assert len(set(expected) - set(file.keys())) == (tied and not settings.get("modules_to_save"))


def load_names(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


def batch_of(tokens):
    """Every token after the tenth is scored."""
    rows, width = tokens.shape
    positions = np.broadcast_to(np.arange(10, width - 1), (rows, width - 11)).astype(np.int32)
    targets = np.take_along_axis(tokens, positions + 1, axis=1)
    return Batch(*(array[None] for array in (tokens, positions, targets, np.ones(targets.shape, bool))))


def train(model, training, tokens, steps):
    batch = place_batch(batch_of(tokens), model.mesh)
    lora, state = jax.tree.map(jnp.copy, model.lora), init_optimizer(model, training, steps)
    step = compile_step(model, training, steps, state, batch)
    losses, rates = [], []
    for number in range(steps):
        lora, state, metrics = step(lora, state, model.base, batch, jnp.int32(number))
        losses.append(float(metrics["loss"]))
        rates.append(float(metrics["learning_rate"]))
    return dataclasses.replace(model, lora=lora), losses, rates


@pytest.mark.parametrize(
    ("settings", "ratio"),
    [
        ({"use_dora": True, "layers_to_transform": (1,), "modules_to_save": BOTH}, 1.0),
        ({"use_dora": True, "target_modules": ("v_proj", "down_proj")}, 16.0),
    ],
    ids=["DoRA, modules to save", "DoRA, LoRA+"],
)
def test_updates_are_those_of_peft(tiny_model, relative, tokens, tmp_path, settings, ratio):
    import peft
    import torch
    import transformers
    from peft.optimizers import create_loraplus_optimizer

    folder = tiny_model(num_hidden_layers=2)
    model = moved(load_model(folder, lora=LoraConfig(r=4, **settings)), size=0.02)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    adapter = save_adapter(model, tmp_path / "adapter", "tiny")
    theirs = peft.PeftModel.from_pretrained(base, adapter, is_trainable=True)
    training = TrainConfig(learning_rate=2e-3, batch_size=3, loraplus_lr_ratio=ratio, weight_decay=0.1)
    trained, losses, rates = train(model, training, tokens, 3)

    optimizer = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1.0, loraplus_lr_ratio=ratio, loraplus_weight_decay=0.1
    )
    expected = []
    for rate in rates:
        for group, factor in zip(optimizer.param_groups, (1, 1, ratio, ratio), strict=True):
            group.update(lr=rate * factor, weight_decay=0.1)
        optimizer.zero_grad()
        logits = theirs(torch.tensor(tokens)).logits[:, 10:-1]
        answers = torch.tensor(tokens[:, 11:], dtype=torch.long)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in theirs.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        expected.append(loss.item())
    assert expected[0] - expected[-1] > 0.01
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    theirs.save_pretrained(tmp_path / "trained")
    _, tree = load_adapter(tmp_path / "trained", model.config)
    for name, parts in tree.items():
        for part, value in parts.items():
            assert relative(trained.lora[name][part], value) < 2e-3, (name, part)


def test_a_mesh_changes_nothing_and_layers_not_chosen_stay_zero(tiny_model, relative, tokens):
    settings = LoraConfig(
        r=4,
        use_dora=True,
        target_modules=("q_proj", "down_proj"),
        layers_to_transform=(1,),
        modules_to_save=BOTH,
    )
    training = TrainConfig(batch_size=4, weight_decay=0.1, learning_rate=0.01)
    folder, rows = tiny_model(num_hidden_layers=2), np.concatenate([tokens, tokens[:1]])
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    alone, split = (
        train(load_model(folder, lora=settings, mesh=place), training, rows, 2) for place in (None, mesh)
    )
    np.testing.assert_allclose(split[1], alone[1], rtol=1e-5)
    for name, parts in alone[0].lora.items():
        for part, value in parts.items():
            found = np.asarray(split[0].lora[name][part])
            assert relative(found, value) < 1e-3, (name, part)
            if name not in BOTH:
                assert not found[0].any() and not np.asarray(value)[0].any()
                assert found[1].any()
    assert split[0].lora["lm_head"]["weight"].addressable_shards[0].data.shape == (48, 32)


def test_a_fresh_dora_changes_nothing_and_is_as_long_as_the_base(tiny_model, tokens, relative):
    folder = tiny_model()
    plain, fresh = load_model(folder), load_model(folder, lora=LoraConfig(r=4, use_dora=True))
    weight = np.asarray(plain.base["layers"]["k_proj"]["weight"], np.float64)
    np.testing.assert_allclose(fresh.lora["k_proj"]["m"], np.linalg.norm(weight, axis=2), rtol=1e-6)
    assert relative(fresh.logits(tokens), plain.logits(tokens)) < 1e-5
    quantised = load_model(folder, quantization="nf4")
    fresh = load_model(folder, lora=LoraConfig(r=4, use_dora=True), quantization="nf4")
    weight = np.asarray(jax.lax.map(lambda w: w.dequantise(), quantised.base["layers"]["k_proj"]["weight"]))
    np.testing.assert_allclose(fresh.lora["k_proj"]["m"], np.linalg.norm(weight, axis=2), rtol=1e-5)
    assert relative(fresh.logits(tokens), quantised.logits(tokens)) < 1e-5
    with pytest.raises(ValueError, match="give base"):
        init_lora(plain.config, LoraConfig(use_dora=True), jax.random.key(0))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"target_modules": r".*\.w_proj"},
            r"matches no projection.*model\.layers\.0\.self_attn\.q_proj.*3 layers",
        ),
        ({"target_modules": r".*(q_proj|head)"}, r"also matches lm_head.*narrow it"),
        ({"layers_to_transform": (1, 3)}, "layers_to_transform has 3, but the model has layers 0 to 2"),
    ],
)
def test_targets_that_the_model_does_not_have_are_refused(tiny_model, settings, words):
    with pytest.raises(InputError, match=words):
        load_model(tiny_model(), lora=LoraConfig(**settings))


def test_an_adapter_is_the_start_of_training_with_its_own_settings(tiny_model, tmp_path):
    folder = tiny_model()
    settings = LoraConfig(r=4, use_dora=True, target_modules=EVERY_OTHER)
    model = moved(load_model(folder, lora=settings))
    start = str(save_adapter(model, tmp_path / "adapter", "tiny"))
    further = load_model(folder, lora=settings.model_copy(update={"init_from": start, "lora_dropout": 0.3}))
    jax.tree.map(np.testing.assert_array_equal, further.lora, model.lora)
    for change, words in (
        ({"r": 8}, "has r 4, not 8"),
        (
            {"target_modules": ("q_proj", "v_proj", "down_proj")},
            r"targets q_proj.*\(layers 0, 2\), not q_proj",
        ),
    ):
        with pytest.raises(InputError, match=f"init_from.*{words}"):
            load_model(folder, lora=settings.model_copy(update={"init_from": start, **change}))


def test_ends_of_names_are_targets_as_in_peft(tiny_model, tmp_path):
    """PEFT takes the end of a module's name, so an adapter may name its targets longer than they are."""
    folder = tiny_model()
    config = load_model(folder).config
    model = moved(load_model(folder, lora=LoraConfig(r=2, target_modules=EVERY_OTHER)))
    adapter = save_adapter(model, tmp_path / "adapter", "tiny")
    file = adapter / "adapter_config.json"
    written = json.loads(file.read_text())
    assert written["target_modules"] == EVERY_OTHER
    names = ["self_attn.q_proj", "v_proj", "mlp.down_proj"]
    file.write_text(json.dumps({**written, "target_modules": names, "layers_to_transform": [0, 2]}))
    lora, tree = load_adapter(adapter, config)
    assert lora_targets(config, lora) == dict.fromkeys(("q_proj", "v_proj", "down_proj"), (0, 2))
    jax.tree.map(np.testing.assert_array_equal, tree, model.lora)
