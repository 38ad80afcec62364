"""Train a LoRA adapter on a dataset and publish it as a PEFT folder.

A run can be killed at any moment. It goes on from its last checkpoint when it is started again with
the same arguments, and then makes the same losses and the same adapter, bit for bit, as a run that
was never killed.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jora_tasks.artifacts import atomic_folder
from jora_tasks.errors import InputError
from jora_tasks.spec import LoraConfig, MeshConfig, TrainConfig
from jora_tasks.trainer.batches import Batches, Update
from jora_tasks.trainer.card import model_card, summarise
from jora_tasks.trainer.checkpoint import METRICS, Position, WorkFolder, fingerprint, read_metrics
from jora_tasks.trainer.config import DecoderConfig
from jora_tasks.trainer.data import Dataset, Example
from jora_tasks.trainer.export import check_base_name, save_adapter
from jora_tasks.trainer.flops import peak_flops, step_flops
from jora_tasks.trainer.load import load_model
from jora_tasks.trainer.mesh import batch_multiple, make_mesh
from jora_tasks.trainer.model import LanguageModel
from jora_tasks.trainer.step import Step, compile_step, init_optimizer, place_batch

OnStep = Callable[[Mapping[str, Any]], None]

CARD = "README.md"


def train_lora(
    model: str | Path | LanguageModel,
    dataset: Dataset,
    lora: LoraConfig = LoraConfig(),  # noqa: B008 (frozen)
    training: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    *,
    output: str | Path,
    base_name: str | None = None,
    dtype: str = "float32",
    on_step: OnStep | None = None,
    work: str | Path | None = None,
) -> Path:
    """Train an adapter and write it as a PEFT folder, with its card and ``metrics.jsonl``.

    Args:
      model: Hugging Face folder of a Llama-family model, or a loaded one; a loaded one that has an
        adapter is trained further.
      dataset: from `load_dataset` or `Dataset.from_prompts`.
      lora: rank, scale, dropout and target modules.
      training: epochs, batches, optimizer, mesh.
      output: folder to publish; must be absent or empty. It appears whole, at the end.
      base_name: what the adapter's configuration calls its base; default the folder's name
        (of a loaded model: "base").
      dtype: of the frozen base, where ``model`` is a folder.
      on_step: called after each update with its metrics, ``total_steps`` and ``eta_seconds``.
      work: folder of checkpoints; default a hidden sibling of ``output``, removed at the end.

    Returns:
      ``output``.

    Raises:
      InputError: for an argument of another type, an output folder in use, a batch that does not split
        over the mesh, an example that the model cannot read, or a work folder of another run.
      FloatingPointError: if a loss or gradient is not finite; names the update and its examples.
    """
    _check_arguments(model, dataset, lora, training, output, on_step, work)
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"output {output} is in use; give a folder that is absent or empty.")
    if base_name is None:
        base_name = "base" if isinstance(model, LanguageModel) else Path(model).resolve().name
    check_base_name(base_name)
    mesh = model.mesh if isinstance(model, LanguageModel) else _mesh(training.mesh)
    if training.batch_size % batch_multiple(mesh):
        raise InputError(
            f"training.batch_size {training.batch_size} does not split over data x fsdp = "
            f"{batch_multiple(mesh)} devices of training.mesh; make it a multiple."
        )
    if not isinstance(model, LanguageModel):
        model = load_model(model, dtype, lora=lora, mesh=mesh, seed=training.seed)
    if model.lora is None or model.lora_config != lora:
        raise InputError(
            f"the loaded model's adapter is {model.lora_config}, not the lora given; "
            "load it with load_model(folder, lora=lora)."
        )
    _check_fits(dataset, model.config)
    folder = Path(work) if work else output.with_name(f".{output.name}.training")
    state = WorkFolder(folder, _identity(model, dataset, lora, training))
    try:
        trained = _train(model, dataset, training, state, on_step)
    finally:
        state.close()
    summary = summarise(read_metrics(state.metrics_file), dataset)
    with atomic_folder(output) as temporary:
        save_adapter(trained, temporary, base_name)
        (temporary / CARD).write_text(model_card(base_name, lora, training, summary), encoding="utf-8")
        shutil.copyfile(state.metrics_file, temporary / METRICS)
    if work is None:
        shutil.rmtree(folder)
    return output


def _check_arguments(
    model: object,
    dataset: object,
    lora: object,
    training: object,
    output: object,
    on_step: object,
    work: object,
) -> None:
    """Types, which no annotation enforces, and places that nothing can be written to."""
    expected: dict[str, tuple[object, tuple[type, ...], str]] = {
        "model": (model, (str, Path, LanguageModel), "the path of a model's folder or what load_model made"),
        "dataset": (dataset, (Dataset,), "what load_dataset or Dataset.from_prompts made"),
        "lora": (lora, (LoraConfig,), "a LoraConfig"),
        "training": (training, (TrainConfig,), "a TrainConfig"),
        "output": (output, (str, Path), "the path of a folder"),
        "work": (work, (str, Path, type(None)), "the path of a folder, or None"),
    }
    for name, (value, types, wanted) in expected.items():
        if not isinstance(value, types):
            raise InputError(f"{name} is of type {type(value).__name__}; give {wanted}.")
    if on_step is not None and not callable(on_step):
        raise InputError(f"on_step is of type {type(on_step).__name__}; give a function, or None.")
    for name, place in (("output", output), ("work", work)):
        file = next((each for each in Path(str(place or ".")).absolute().parents if each.is_file()), None)
        if file is not None:
            raise InputError(f"{name} {place} is below the file {file}; give a folder that can be made.")


def _mesh(config: MeshConfig) -> Mesh | None:
    return None if config == MeshConfig() else make_mesh(config)


def _check_fits(dataset: Dataset, config: DecoderConfig) -> None:
    for example in dataset.examples:
        if example.input_ids.min() < 0 or example.input_ids.max() >= config.vocab_size:
            raise InputError(
                f"example {example.id} has token {int(example.input_ids.max())}, but the model knows "
                f"{config.vocab_size}; tokenize with the tokenizer of this base model."
            )
        if len(example.input_ids) > config.max_positions:
            raise InputError(
                f"example {example.id} has {len(example.input_ids)} tokens, but the model reads at most "
                f"{config.max_positions}; shorten it or use a base model with a longer context."
            )


def _identity(
    model: LanguageModel, dataset: Dataset, lora: LoraConfig, training: TrainConfig
) -> dict[str, Any]:
    return {
        **{f"lora.{key}": value for key, value in lora.model_dump(mode="json").items()},
        **{f"training.{key}": value for key, value in training.making().items()},
        "dataset": dataset.digest,
        "base weights": fingerprint(model.base),
        "first adapter": fingerprint(model.lora),
    }


def _train(
    model: LanguageModel, dataset: Dataset, training: TrainConfig, work: WorkFolder, on_step: OnStep | None
) -> LanguageModel:
    """Do the updates that are not done yet; returns the model with the trained adapter."""
    batches = Batches(dataset, training.batch_size, training.gradient_accumulation, training.seed)
    total = training.epochs * batches.per_epoch
    opt_state = init_optimizer(model, training, total)
    lora = jax.tree.map(jnp.copy, model.lora)  # the caller's own is not donated
    position = Position(0, 0, 0)
    restored = work.restore((lora, opt_state))
    if restored is not None:
        position, (lora, opt_state) = restored

    peak = peak_flops(jax.tree.leaves(model.lora)[0].devices())
    rows = training.batch_size * training.gradient_accumulation
    left = rows * sum(update.length for update, *_ in _remaining(batches, position, training.epochs))
    computed, spent = 0, 0.0
    programs: dict[int, Step] = {}
    for update, number, epoch, after in _remaining(batches, position, training.epochs):
        batch = place_batch(batches.arrays(update), model.mesh)
        if update.length not in programs:
            programs[update.length] = compile_step(model, training, total, opt_state, batch)
        started = time.perf_counter()
        lora, opt_state, measured = programs[update.length](
            lora, opt_state, model.base, batch, jnp.int32(number)
        )
        figures = {name: float(measured[name]) for name in ("loss", "learning_rate", "grad_norm")}
        seconds = time.perf_counter() - started
        examples = [dataset.examples[index] for index in update.indices]
        if not all(map(math.isfinite, figures.values())):
            raise FloatingPointError(
                f"update {after.step} has loss {figures['loss']} and gradient norm "
                f"{figures['grad_norm']}; its examples are {', '.join(example.id for example in examples)}; "
                "lower training.learning_rate or look at these examples."
            )
        metrics = {
            "step": after.step,
            "epoch": epoch,
            **figures,
            **_speed(model, examples, seconds, peak),
        }
        work.record(metrics)
        if after.step % training.checkpoint_every == 0 or after.step == total:
            work.save(after, (lora, opt_state))
        computed, spent = computed + update.length * rows, spent + seconds
        if on_step is not None:
            eta = (left - computed) * spent / computed
            on_step({**metrics, "total_steps": total, "eta_seconds": round(eta, 1)})
    return replace(model, lora=lora)


def _remaining(
    batches: Batches, position: Position, epochs: int
) -> Iterator[tuple[Update, int, int, Position]]:
    """The updates from a position on: each with its number and epoch, and the position after it."""
    number, index = position.step, position.index
    for epoch in range(position.epoch, epochs):
        updates = batches.epoch(epoch)
        for place in range(index, len(updates)):
            after = (epoch, place + 1) if place + 1 < len(updates) else (epoch + 1, 0)
            yield updates[place], number, epoch, Position(number + 1, *after)
            number += 1
        index = 0


def _speed(
    model: LanguageModel, examples: Sequence[Example], seconds: float, peak: float | None
) -> dict[str, Any]:
    """Tokens of an update, without padding, and how fast they were."""
    lengths = [len(example.input_ids) for example in examples]
    scored = int(sum(example.scored.sum() for example in examples))
    flops = step_flops(model.config, model.lora_config or LoraConfig(), lengths, scored)
    return {
        "tokens": sum(lengths),
        "scored_tokens": scored,
        "tokens_per_second": sum(lengths) / seconds,
        "mfu_4n": None if peak is None else flops / seconds / peak,
        "seconds": seconds,
    }
