"""Train a LoRA adapter on a dataset and publish it as a PEFT folder.

A run can be killed at any moment. It goes on from its last checkpoint when it is started again with
the same arguments, and then makes the same losses and the same adapter, bit for bit, as a run that
was never killed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jora_tasks.errors import InputError
from jora_tasks.spec import LoraConfig, MeshConfig, TrainConfig
from jora_tasks.trainer.batches import Batches
from jora_tasks.trainer.card import SKIPPED, model_card, summarise
from jora_tasks.trainer.checkpoint import OnSaved, WorkFolder
from jora_tasks.trainer.config import DecoderConfig, read_config
from jora_tasks.trainer.data import Dataset
from jora_tasks.trainer.distributed import from_first, gathered, initialize, is_first, meet, several
from jora_tasks.trainer.export import check_base_name, save_adapter
from jora_tasks.trainer.fingerprint import fingerprint
from jora_tasks.trainer.heldout import HeldOut
from jora_tasks.trainer.load import load_model
from jora_tasks.trainer.lock import sole_use
from jora_tasks.trainer.loop import Loop, OnStep
from jora_tasks.trainer.mesh import batch_multiple, length_multiple, make_mesh
from jora_tasks.trainer.metrics import METRICS, read_metrics
from jora_tasks.trainer.model import LanguageModel
from jora_tasks.trainer.profiling import Profile
from jora_tasks.trainer.quantize import base_in_words
from jora_tasks.trainer.shared import SharedWork, open_work
from jora_tasks.trainer.sigterm import stop_on_sigterm
from jora_tasks.trainer.targets import disagreement
from jora_tasks.writing import atomic_folder, check_unused

CARD, SUMMARY = "README.md", "summary.json"


def train_lora(
    model: str | Path | LanguageModel,
    dataset: Dataset,
    lora: LoraConfig = LoraConfig(),  # noqa: B008 (frozen)
    training: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    *,
    output: str | Path,
    base_name: str | None = None,
    dtype: str = "float32",
    quantization: str = "none",
    on_step: OnStep | None = None,
    work: str | Path | None = None,
    held_out: Dataset | None = None,
    profile: str | Path | None = None,
    on_checkpoint: OnSaved | None = None,
) -> Path:
    """Train an adapter and write it as a PEFT folder with its card.

    Beside them lie ``metrics.jsonl``, a line an update, ``summary.json`` (`card.summarise`) and, where
    examples were left out for their length, ``skipped.jsonl`` with the id and tokens of each.

    Args:
      model: Hugging Face folder of a supported model, or a loaded one; a loaded one that has an
        adapter is trained further.
      dataset: from `load_dataset` or `Dataset.from_prompts`.
      lora: rank, scale, dropout and target modules.
      training: epochs, batches, optimizer, mesh.
      output: folder to publish; must be absent or empty. It appears whole, at the end.
      base_name: what the adapter's configuration calls its base; default the folder's name
        (of a loaded model: "base").
      dtype: of the frozen base, where ``model`` is a folder.
      quantization: of the frozen base's projections, where ``model`` is a folder; see `load_model`.
      on_step: called after each update with its metrics, ``total_steps`` and ``eta_seconds``.
      work: folder of checkpoints; default a hidden sibling of ``output``, removed at the end.
      held_out: examples of the evaluation loss, where ``training.eval_every`` asks for one.
      profile: folder of the trace, where ``training.profile_updates`` asks for one.
      on_checkpoint: called in the background with the update of each checkpoint that is whole in ``work``;
        a failure of it is logged, and stops nothing.

    Returns:
      ``output``.

    Raises:
      InputError: for an argument of another type, an output folder in use, a batch that does not split
        over the mesh or fit in memory, an example that the model cannot read, or a work folder of another
        run or under another trainer.
      Diverged: if a loss or gradient is not finite; names the update, its examples and the last checkpoint.
      Preempted: after SIGTERM in the main thread, once the state is saved.
      RunStopped: if a checkpoint cannot be written, as on a full disk.
    """
    _check_arguments(model, dataset, lora, training, output, on_step, work)
    _check_options(training, held_out, profile)
    initialize()
    output = Path(output)
    from_first(lambda: check_unused(output))
    if base_name is None:
        base_name = "base" if isinstance(model, LanguageModel) else Path(model).resolve().name
    check_base_name(base_name)
    mesh = model.mesh if isinstance(model, LanguageModel) else _mesh(training.mesh)
    if training.batch_size % batch_multiple(mesh):
        raise InputError(
            f"training.batch_size {training.batch_size} does not split over data x fsdp = "
            f"{batch_multiple(mesh)} devices of training.mesh; make it a multiple."
        )
    config = model.config if isinstance(model, LanguageModel) else read_config(model)
    dataset = _readable(dataset, config, training)
    if held_out is not None:
        held_out = _readable(held_out, config, training)
    folder = Path(work) if work else output.with_name(f".{output.name}.training")
    with contextlib.ExitStack() as locks:
        from_first(lambda: _hold(locks, output, folder if work else None))
        if not isinstance(model, LanguageModel):
            model = load_model(
                model, dtype, lora=lora, mesh=mesh, seed=training.seed, quantization=quantization
            )
        model = _with_settings(model, lora)
        meet()
        state = open_work(folder, _identity(model, dataset, held_out, lora, training), on_checkpoint)
        try:
            trained = _train(model, dataset, held_out, training, state, on_step, profile)
        finally:
            state.close()
        trained = replace(trained, lora=gathered(mesh)(trained.lora))
        from_first(lambda: _publish(trained, dataset, training, output, base_name, state.metrics_file))
        if work is None and is_first():
            shutil.rmtree(folder)
    return output


def _hold(locks: contextlib.ExitStack, output: Path, work: Path | None) -> None:
    """Keep other trainers away from the folders."""
    locks.enter_context(sole_use(output, "output"))
    check_unused(output)  # another trainer may have published between the check and the lock
    if work is not None:
        locks.enter_context(sole_use(work, "work"))


def _publish(
    model: LanguageModel,
    dataset: Dataset,
    training: TrainConfig,
    output: Path,
    base_name: str,
    metrics: Path,
) -> None:
    """Write the trained adapter and what tells of its training."""
    lora = model.lora_config or LoraConfig()
    summary = summarise(read_metrics(metrics), dataset, training)
    card = model_card(base_name, base_in_words(model.base), model.config, lora, training, summary)
    with atomic_folder(output) as temporary:
        save_adapter(model, temporary, base_name)
        (temporary / CARD).write_text(card, encoding="utf-8")
        shutil.copyfile(metrics, temporary / METRICS)
        (temporary / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
        if dataset.skipped:
            lines = (json.dumps(asdict(each)) + "\n" for each in dataset.skipped)
            (temporary / SKIPPED).write_text("".join(lines))


def _with_settings(model: LanguageModel, lora: LoraConfig) -> LanguageModel:
    """The model, to be trained with these settings, if its adapter has them."""
    if model.lora is None or model.lora_config is None:
        raise InputError("the loaded model has no adapter; load it with load_model(folder, lora=lora).")
    if difference := disagreement(model.config, model.lora_config, lora):
        raise InputError(
            f"the loaded model's adapter has {difference}, as the lora given says; "
            "load it with load_model(folder, lora=lora)."
        )
    if lora.init_from != model.lora_config.init_from:
        raise InputError(
            "lora.init_from is for a model's folder; load the adapter with load_model(folder, lora=lora)."
        )
    return replace(model, lora_config=lora)


def _train(
    model: LanguageModel,
    dataset: Dataset,
    held_out: Dataset | None,
    training: TrainConfig,
    work: WorkFolder | SharedWork,
    on_step: OnStep | None,
    profile: str | Path | None,
) -> LanguageModel:
    batches = Batches(
        dataset,
        training.batch_size,
        training.gradient_accumulation,
        training.seed,
        training.packing,
        training.row_length,
        length_multiple(model.mesh),
    )
    evaluation = HeldOut(model, held_out, training) if held_out and training.eval_every else None
    trace = Profile(Path(profile or work.path / "profile"), training.profile_updates)
    with stop_on_sigterm(model.mesh) as stop:
        loop = Loop(model, batches, training, work, stop, trace, held_out=evaluation, on_step=on_step)
        return loop.run()


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


def _check_options(training: TrainConfig, held_out: object, profile: object) -> None:
    if not isinstance(held_out, Dataset | None):
        raise InputError(
            f"held_out is of type {type(held_out).__name__}; give what load_dataset made, or None."
        )
    if not isinstance(profile, str | Path | None):
        raise InputError(f"profile is of type {type(profile).__name__}; give the path of a folder, or None.")
    if training.eval_every and held_out is None:
        raise InputError(
            "training.eval_every asks for evaluations, but there are no held-out examples; "
            "give held_out, or set training.eval_every to 0."
        )


def _mesh(config: MeshConfig) -> Mesh | None:
    return None if config == MeshConfig() and not several() else make_mesh(config)


def _readable(dataset: Dataset, config: DecoderConfig, training: TrainConfig) -> Dataset:
    """The examples that the model can read and the settings allow, the longer ones listed as skipped."""
    for example in dataset.examples:
        if example.input_ids.min() < 0 or example.input_ids.max() >= config.vocab_size:
            raise InputError(
                f"example {example.id} has token {int(example.input_ids.max())}, but the model knows "
                f"{config.vocab_size}; tokenize with the tokenizer of this base model."
            )
    limits = {
        "the most that the model reads": config.max_positions,
        "training.max_length": training.max_length,
        "training.row_length": training.row_length if training.packing else 0,
    }
    limit, most = min(((name, most) for name, most in limits.items() if most), key=lambda each: each[1])
    return dataset.within(most, training.long_examples, limit)


def _identity(
    model: LanguageModel,
    dataset: Dataset,
    held_out: Dataset | None,
    lora: LoraConfig,
    training: TrainConfig,
) -> dict[str, Any]:
    evaluated = held_out is not None and training.eval_every > 0
    return {
        **{f"lora.{key}": value for key, value in lora.making().items()},
        **{f"training.{key}": value for key, value in training.making().items()},
        "dataset": dataset.digest,
        "held-out dataset": held_out.digest if held_out is not None and evaluated else None,
        "base weights": fingerprint(model.base),
        "first adapter": fingerprint(model.lora),
    }
