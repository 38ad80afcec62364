"""The loop: evaluation, the best adapter, early stopping, divergence, the trace, and what fits."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_tasks.errors import Diverged, InputError
from jora_tasks.spec import TrainConfig
from jora_tasks.trainer.batches import Batches
from jora_tasks.trainer.checkpoint import Position
from jora_tasks.trainer.data import Dataset, Example
from jora_tasks.trainer.export import load_adapter
from jora_tasks.trainer.heldout import evaluated
from jora_tasks.trainer.memory import fitting
from jora_tasks.trainer.train import train_lora
from tests.trainer import tiny_run

LORA = tiny_run.LORA.model_copy(update={"lora_dropout": 0.0})
SETTINGS = {"batch_size": 4, "learning_rate": 0.2, "schedule": "constant", "warmup_ratio": 0.0}


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _loss(folder, held_out):
    """Mean loss of the published adapter over the scored tokens, example by example, in float64."""
    model = tiny_run.model(LORA)
    model = replace(model, lora=load_adapter(folder, tiny_run.CONFIG)[1])
    total, count = 0.0, 0
    for example in held_out.examples:
        logits = np.asarray(model.logits(example.input_ids[None])[0], np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        targets = np.flatnonzero(example.scored)
        total -= log_p[targets - 1, example.input_ids[targets]].sum()
        count += len(targets)
    return total / count


def _place(dataset, index, seed):
    """Which update of the first epoch has the example."""
    updates = Batches(dataset, SETTINGS["batch_size"], 1, seed).epoch(0)
    return next(number for number, update in enumerate(updates) if index in update.indices)


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    """A run that overfits, the best adapter kept, stopped after three evaluations without a better one."""
    held_out = tiny_run.dataset(5, seed=1)
    output = tmp_path_factory.mktemp("best") / "adapter"
    training = TrainConfig(epochs=40, eval_every=2, keep="best", early_stopping_patience=3, **SETTINGS)
    train_lora(tiny_run.model(LORA), tiny_run.dataset(), LORA, training, output=output, held_out=held_out)
    return output, held_out


def test_the_best_adapter_by_evaluation_loss_is_published(best):
    output, held_out = best
    losses = [line["eval_loss"] for line in _lines(output) if "eval_loss" in line]
    assert losses[-1] > min(losses)
    assert _loss(output, held_out) == pytest.approx(min(losses), rel=1e-5)


def test_training_stops_after_the_patience_and_says_so(best):
    lines = _lines(best[0])
    evaluations = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == list(range(2, len(lines) + 1, 2))
    lowest = min(evaluations, key=lambda line: line["eval_loss"])
    assert len(lines) == lowest["step"] + 3 * 2 < 40 * 4
    card = (best[0] / "README.md").read_text()
    assert f"| Evaluation loss, after update | {lowest['eval_loss']:.4f}, {lowest['step']} |" in card


def test_evaluations_count_from_the_best():
    position = Position(0, 0, 0)
    told = []
    for step, loss in enumerate([3.0, 2.0, 2.0, 2.5, 1.0], 1):
        position = evaluated(replace(position, step=step), loss)
        told.append((position.best_loss, position.best_step, position.stale))
    assert told == [(3.0, 1, 0), (2.0, 2, 0), (2.0, 2, 1), (2.0, 2, 2), (1.0, 5, 0)]


def test_evaluations_without_examples_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"training\.eval_every asks .* give held_out, or set"):
        train_lora(
            tiny_run.model(),
            tiny_run.dataset(),
            tiny_run.LORA,
            TrainConfig(eval_every=1),
            output=tmp_path / "o",
        )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{"keep": "best"}, {"early_stopping_patience": 1}])
def test_what_needs_evaluations_asks_for_them(settings):
    with pytest.raises(ValueError, match="set eval_every above 0"):
        TrainConfig(**settings)


def test_nothing_is_kept_of_an_update_that_diverged(tmp_path):
    model = tiny_run.model(LORA)
    embedding = model.base["embed"].at[63].set(jnp.nan)
    broken = replace(model, base={**model.base, "embed": embedding})
    bad = Example.make("bad", [1, 63, 2, 3], prompt_length=2)
    dataset = Dataset((*tiny_run.dataset(15).examples, bad))
    seed, place = next((seed, place) for seed in range(20) if 0 < (place := _place(dataset, 15, seed)) < 3)
    training = TrainConfig(epochs=2, checkpoint_every=1, seed=seed, **SETTINGS)
    work = tmp_path / "work"
    with pytest.raises(Diverged) as stopped:
        train_lora(broken, dataset, LORA, training, output=tmp_path / "out", work=work)
    said = str(stopped.value)
    assert f"update {place + 1} has loss nan" in said
    assert "bad" in said.split("examples are ")[1].split("; ")[0].split(", ")
    assert f"the last good checkpoint is of update {place}, in {work}" in said
    assert max(int(folder.name) for folder in (work / "checkpoints").iterdir()) == place
    assert len(_lines(work)) == place


def test_a_trace_is_made_of_the_updates_asked_for(tmp_path):
    training = TrainConfig(epochs=2, profile_updates=2, **SETTINGS)
    train_lora(
        tiny_run.model(), tiny_run.dataset(), tiny_run.LORA, training,
        output=tmp_path / "out", profile=tmp_path / "trace",
    )  # fmt: skip
    traces = list((tmp_path / "trace").rglob("*.xplane.pb"))
    assert len(traces) == 1
    assert b"jit_step" in traces[0].read_bytes()


def test_out_of_memory_names_the_longest_example():
    examples = [Example.make(name, [1] * length, prompt_length=1) for name, length in (("a", 9), ("b", 7000))]
    words = r"example b of 7,000 tokens does not fit .* training\.batch_size 4"
    with pytest.raises(InputError, match=words), fitting(examples, 4):
        jax.jit(lambda: jnp.zeros((1 << 45,), jnp.float32))().block_until_ready()
    with pytest.raises(ZeroDivisionError), fitting(examples, 4):
        1 / 0  # noqa: B018 (another error is let through)
