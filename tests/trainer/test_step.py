"""One update: what counts towards it, and that it is the same however it is split."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_tasks.spec import LoraConfig, TrainConfig
from jora_tasks.trainer.batches import Batch, Batches
from jora_tasks.trainer.config import parse_config
from jora_tasks.trainer.data import Dataset, Example
from jora_tasks.trainer.lora import init_lora
from jora_tasks.trainer.model import LanguageModel
from jora_tasks.trainer.optimizer import init_optimizer, make_optimizer, make_schedule
from jora_tasks.trainer.parameters import init_base
from jora_tasks.trainer.step import compile_step, place_batch

CONFIG = parse_config(
    {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    }
)


def _model(lora=LoraConfig(r=4), seed=0):  # noqa: B008
    """A random model whose adapter already does something."""
    base = init_base(CONFIG, jax.random.key(seed))
    adapter = init_lora(CONFIG, lora, jax.random.key(seed + 1))
    for number, parts in enumerate(adapter.values()):
        parts["b"] = 0.1 * jax.random.normal(jax.random.key(number), parts["b"].shape)
    return LanguageModel(CONFIG, base, adapter, lora)


def _examples(count=8, seed=0):
    random = np.random.default_rng(seed)
    lengths = random.integers(10, 60, count)
    return Dataset(
        tuple(
            Example.make(
                str(i), random.integers(0, 96, n), prompt_length=int(n - random.integers(1, min(n - 1, 9)))
            )
            for i, n in enumerate(lengths)
        )
    )


def _batch(dataset, rows, parts):
    batches = Batches(dataset, rows, parts, seed=0)
    return batches.arrays(batches.epoch(0)[0])


@functools.cache
def _step(lora, training, shapes):
    """Compiled once for each setting and shape; it takes any model of `CONFIG` on one device."""
    batch = Batch(*(jnp.zeros(shape, dtype) for shape, dtype in shapes))
    model = _model(lora)
    return compile_step(model, training, 10, init_optimizer(model, training, 10), batch)


def _update(model, training, batch, number=0):
    step = _step(
        model.lora_config, training, tuple((array.shape, array.dtype) for array in batch if array is not None)
    )
    state = jax.tree.map(jnp.copy, (model.lora, init_optimizer(model, training, 10)))
    lora, _, metrics = step(*state, model.base, place_batch(batch, None), jnp.int32(number))
    return jax.device_get(lora), {name: float(value) for name, value in metrics.items()}


def _assert_close(one, other, rtol):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * scale, err_msg=jax.tree_util.keystr(path))


def test_the_loss_is_the_mean_over_scored_tokens_of_all_examples():
    model, dataset = _model(), _examples()
    _, metrics = _update(model, TrainConfig(batch_size=8), _batch(dataset, 8, 1))
    total, count = 0.0, 0
    for example in dataset.examples:
        logits = np.asarray(model.logits(example.input_ids[None])[0], np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        scored = np.flatnonzero(example.scored)
        total -= log_p[scored - 1, example.input_ids[scored]].sum()
        count += len(scored)
    assert metrics["loss"] == pytest.approx(total / count, rel=1e-5)


def test_accumulation_weighs_every_scored_token_the_same():
    model, dataset = _model(), _examples()
    whole, first = _update(model, TrainConfig(batch_size=8), _batch(dataset, 8, 1))
    parts, second = _update(model, TrainConfig(batch_size=2, gradient_accumulation=4), _batch(dataset, 2, 4))
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-6)
    assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-5)
    _assert_close(whole, parts, 1e-4)  # Adam's first update magnifies rounding where gradients are tiny


def test_on_a_cpu_few_rows_at_once_give_the_same_update_in_less_memory(monkeypatch):
    model, dataset = _model(), _examples(7)
    batch, training = _batch(dataset, 8, 1), TrainConfig(batch_size=8)
    state = (model.lora, init_optimizer(model, training, 10))
    updates, memory = [], []
    for tokens in (batch.tokens.size, batch.tokens.size // 4, 1):
        monkeypatch.setattr("jora_tasks.trainer.step.AT_ONCE", tokens)
        program = compile_step(model, training, 10, state[1], batch)
        memory.append(program.memory_analysis().temp_size_in_bytes)
        lora, _, metrics = program(*jax.tree.map(jnp.copy, state), model.base, batch, jnp.int32(0))
        updates.append((jax.device_get(lora), float(metrics["loss"])))
    (whole, loss), *others = updates
    for few, few_loss in others:
        assert few_loss == pytest.approx(loss, rel=1e-6)
        _assert_close(whole, few, 1e-4)
    assert memory[1] < 0.6 * memory[0]
    assert memory[2] < memory[1]


def test_padding_and_rows_that_fill_up_change_nothing():
    model = _model()
    dataset = _examples(5)
    batch = _batch(dataset, 8, 1)
    lengths = np.zeros(8, int)
    batches = Batches(dataset, 8, 1, seed=0)
    for row, index in enumerate(batches.epoch(0)[0].indices):
        lengths[row] = len(dataset.examples[index].input_ids)
    padding = np.arange(batch.tokens.shape[-1]) >= lengths[:, None]
    other = batch._replace(
        tokens=np.where(padding, 77, batch.tokens), targets=np.where(batch.scored, batch.targets, 5)
    )
    training = TrainConfig(batch_size=8)
    ours, theirs = _update(model, training, batch), _update(model, training, other)
    assert ours[1] == theirs[1]
    jax.tree.map(np.testing.assert_array_equal, ours[0], theirs[0])


def test_only_the_adapter_changes_and_all_of_it_does():
    model = _model()
    before = jax.device_get(model.base)
    after, _ = _update(model, TrainConfig(batch_size=8), _batch(_examples(), 8, 1))
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(model.base))
    for path, leaf in jax.tree_util.tree_leaves_with_path(after):
        start = model.lora[path[0].key][path[1].key]
        assert (leaf != np.asarray(start)).any(axis=(1, 2)).all(), path


@pytest.mark.parametrize("remat", ["full", "none", "offload"])
def test_remat_changes_memory_not_results(remat):
    model, batch = _model(), _batch(_examples(), 8, 1)
    attention, first = _update(model, TrainConfig(batch_size=8, remat="attention"), batch)
    other, second = _update(model, TrainConfig(batch_size=8, remat=remat), batch)
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-6)
    _assert_close(attention, other, 1e-4)


def test_dropout_is_drawn_anew_each_update():
    model = _model(LoraConfig(r=4, lora_dropout=0.5))
    training, batch = TrainConfig(batch_size=8), _batch(_examples(), 8, 1)
    first, other, again = (_update(model, training, batch, number)[1]["loss"] for number in (0, 1, 0))
    assert first == again != other


def test_schedule_values():
    schedule = make_schedule(TrainConfig(learning_rate=1.0, warmup_ratio=0.3), 10)
    cosine = [0.5 * (1 + np.cos(np.pi * step / 7)) for step in range(7)]
    expected = [0.25, 0.5, 0.75, *cosine]
    np.testing.assert_allclose([schedule(step) for step in range(10)], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("ratio", "total"), [(0.0, 1), (1.0, 1), (0.0, 5), (1.0, 5), (0.05, 3)])
def test_schedule_never_wastes_an_update(ratio, total):
    schedule = make_schedule(TrainConfig(learning_rate=1e-3, warmup_ratio=ratio), total)
    values = np.array([schedule(step) for step in range(total)])
    assert (values > 0).all()
    assert values.max() == pytest.approx(1e-3)


def test_the_optimizer_is_that_of_torch():
    import torch

    training = TrainConfig(learning_rate=0.01, weight_decay=0.1, max_grad_norm=1.0, warmup_ratio=0.4)
    random = np.random.default_rng(0)
    start = random.normal(size=(4, 3)).astype(np.float32)
    optimizer, schedule = make_optimizer(training, 5), make_schedule(training, 5)
    ours, state = jnp.asarray(start), optimizer.init(jnp.asarray(start))
    theirs = torch.nn.Parameter(torch.tensor(start))
    adam = torch.optim.AdamW([theirs], lr=1.0, weight_decay=0.1)
    for step in range(5):
        gradient = random.normal(size=(4, 3)).astype(np.float32) * 10.0 ** (step - 2)
        updates, state = optimizer.update(jnp.asarray(gradient), state, ours)
        ours = ours + updates
        theirs.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        adam.param_groups[0]["lr"] = float(schedule(step))
        adam.step()
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=2e-5, atol=2e-6)


# data, fsdp, tensor, sequence; the rows of a batch are padded to 64 tokens
MESHES = (
    (2, 1, 1, 1),
    (1, 2, 1, 1),
    (1, 1, 2, 1),
    (1, 1, 4, 1),
    (1, 1, 1, 4),
    (1, 1, 2, 2),
    (2, 2, 2, 1),
    (1, 2, 2, 2),
    (8, 1, 1, 1),
)

CHILD = """
import json, sys
import importlib.util
spec = importlib.util.spec_from_file_location("cases", sys.argv[1])
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
json.dump(cases.updates_on_meshes(), open(sys.argv[2], "w"))
"""


def updates_on_meshes():
    """In a process with 8 devices: two updates on each mesh, as {mesh: [losses, sums of the adapter]}."""
    from jora_tasks.spec import MeshConfig
    from jora_tasks.trainer.lora import lora_axes
    from jora_tasks.trainer.mesh import RULES, make_mesh
    from jora_tasks.trainer.parameters import describe, unflatten

    one = _model()
    batch = _batch(_examples(), 8, 1)
    results = {}
    for shape in ((1, 1, 1, 1), *MESHES):
        mesh = make_mesh(MeshConfig(**dict(zip(("data", "fsdp", "tensor", "sequence"), shape, strict=True))))

        def place(leaf, axes, mesh=mesh):
            return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, RULES.spec(axes)))

        axes = unflatten({path: p.axes for path, p in describe(CONFIG).items()})
        base = jax.tree.map(place, one.base, axes)
        lora = {
            name: {
                part: place(leaf, lora_axes(CONFIG, one.lora_config)[name][part])
                for part, leaf in parts.items()
            }
            for name, parts in one.lora.items()
        }
        model = LanguageModel(CONFIG, base, lora, one.lora_config, mesh)
        training = TrainConfig(batch_size=8, learning_rate=0.01)
        placed = place_batch(batch, mesh)
        opt_state = init_optimizer(model, training, 4)
        step = compile_step(model, training, 4, opt_state, placed)
        lora = jax.tree.map(jnp.copy, lora)
        losses = []
        for number in range(2):
            lora, opt_state, metrics = step(lora, opt_state, base, placed, jnp.int32(number))
            losses.append(float(metrics["loss"]))
        values = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(jax.device_get(lora))]
        results[json.dumps(shape)] = [losses, values]
    return results


@pytest.fixture(scope="module")
def on_meshes(tmp_path_factory):
    file = tmp_path_factory.mktemp("meshes") / "updates.json"
    # Level 0 halves the time to compile and leaves the partitioning as it is.
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", CHILD, __file__, str(file)], check=True, env=environment)
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    "shape", MESHES, ids=lambda shape: "data{} fsdp{} tensor{} sequence{}".format(*shape)
)
def test_a_mesh_gives_the_updates_of_one_device(shape, on_meshes):
    losses, adapter = on_meshes[json.dumps(shape)]
    expected_losses, expected = on_meshes["[1, 1, 1, 1]"]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert losses[1] < losses[0]
    for ours, theirs in zip(adapter, expected, strict=True):
        ours, theirs = np.array(ours), np.array(theirs)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
