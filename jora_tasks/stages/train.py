"""prompts + base model → adapter: the PEFT folder that training makes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jora_tasks.artifacts import Artifact, ArtifactStore, Input, Source, Write, run_name
from jora_tasks.digests import digest_file, digest_json
from jora_tasks.errors import InputError
from jora_tasks.launching.launcher import LOGS, run_together
from jora_tasks.launching.settings import Launch, launch_of
from jora_tasks.manifest import check_copy
from jora_tasks.models import base_model_folder, model_source
from jora_tasks.progress import Progress
from jora_tasks.shared_work import forget, keep, take_up
from jora_tasks.spec import LoraConfig, RunSpec, dump_spec
from jora_tasks.trainer.config import DecoderConfig, read_config
from jora_tasks.trainer.group import group_of
from jora_tasks.trainer.lease import leased
from jora_tasks.trainer.targets import as_settings, lora_targets

KIND = "adapter"
VERSION = 1
# The next checkpoint waits for this one to be shared: a store that is away must not keep training long.
_CHECKPOINT_PATIENCE = 15.0
_APART = "The processes of a run must share one JORA_HOME, a folder that all of them see, or JORA_ARTIFACTS."
FIGURES = ("loss", "eval_loss", "learning_rate", "tokens_per_second", "eta_seconds")


def train_adapter(spec: RunSpec, prompts: Artifact, store: ArtifactStore, progress: Progress) -> Artifact:
    """Train the adapter that these prompts, this base model and these settings make.

    Checkpoints lie in the store's work folder of the artifact's key, so a stage that was killed goes on
    where it was. How often they are made and how many devices share the work belong to no key. By option
    the curves go to ``tensorboard/<name>/<key>`` in the home or to MLflow, and a profile to
    ``profiles/<key>``.

    Where the environment asks for a launch (`jora_tasks.launching.settings`), several processes do all this.

    Returns:
      The artifact: ``adapter_config.json``, ``adapter_model.safetensors``, ``README.md``,
      ``metrics.jsonl``, ``summary.json`` and, where prompts were left out for their length,
      ``skipped.jsonl``; counts of steps, epochs, examples and tokens, final loss and speed.

    Raises:
      InputError: without a question to train on (or to evaluate on, where asked), or if the base model or
        the prompts cannot be used.
      RunStopped: see `jora_tasks.trainer.train.train_lora` and `jora_tasks.trainer.lease.leased`.
    """
    _check_splits(prompts, spec.training.eval_every > 0)
    base = base_model_folder(spec.model.base, store.home)
    source = model_source(base, spec.model.base)
    settings = {
        "lora": _making(spec.lora, read_config(base)),
        "training": spec.training.making(),
        **spec.model.weights(),
    }
    inputs: dict[str, Input] = {"prompts": prompts, "base_model": source}
    if spec.lora.init_from:
        inputs["start"] = _start(Path(spec.lora.init_from), store)
    key = store.key(KIND, version=VERSION, settings=settings, inputs=inputs)
    if launch := launch_of(os.environ):
        return store.find(KIND, key) or _launched(launch, spec, prompts, store, key)
    work = store.work_folder(KIND, key)

    def report(metrics: Mapping[str, Any]) -> None:
        progress(
            "train",
            done=metrics["step"],
            total=metrics["total_steps"],
            unit="steps",
            **{name: metrics[name] for name in FIGURES if name in metrics},
        )

    def train(folder: Path, on_step: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        from jora_tasks.trainer.compile_cache import use_compile_cache
        from jora_tasks.trainer.data import Dataset
        from jora_tasks.trainer.train import train_lora

        file = prompts.file("prompts.parquet")
        use_compile_cache(store.home)
        with (
            leased(store.home, run_name(spec.name), lambda what: progress("train", waiting=what)),
            store.meter.on_devices(),
        ):
            train_lora(
                base,
                Dataset.from_prompts(file, split="train"),
                spec.lora,
                spec.training,
                output=folder,
                work=work,
                base_name=source.name,
                dtype=spec.model.dtype,
                quantization=spec.model.quantization,
                on_step=on_step,
                held_out=Dataset.from_prompts(file, split="dev") if spec.training.eval_every else None,
                profile=store.home / "profiles" / key,
                on_checkpoint=_sharing(store, key, work),
            )

    def write(folder: Path) -> Mapping[str, Any]:
        from jora_tasks.trainer.train import SUMMARY

        if store.shared is not None:
            from jora_tasks.trainer.checkpoint import last_sealed

            take_up(store.shared, KIND, key, work, last_sealed(work))
        with _tracked(spec, key, store) as track:

            def on_step(metrics: Mapping[str, Any]) -> None:
                report(metrics)
                track(metrics)

            train(folder, on_step)
        summary: Mapping[str, Any] = json.loads((folder / SUMMARY).read_text())
        return summary

    def build(write: Write) -> Artifact:
        return store.build(
            KIND,
            version=VERSION,
            settings=settings,
            inputs=inputs,
            write=write,
            provenance={"mesh": spec.training.mesh.model_dump()},
        )

    if group_of(os.environ) is None:
        artifact = build(write)
    else:
        artifact = _build_together(build, write, lambda: train(work / "part"))
    shutil.rmtree(work, ignore_errors=True)
    if store.shared is not None and not artifact.reused:
        forget(store.shared, KIND, key)
    return artifact


def _launched(launch: Launch, spec: RunSpec, prompts: Artifact, store: ArtifactStore, key: str) -> Artifact:
    """The artifact as the processes of a launch make it, each by the command that people type."""
    store.meter.elsewhere = True
    run_together(
        launch,
        ["train", "--json", "--prompts", prompts.key],
        dump_spec(spec),
        {**os.environ, "JORA_HOME": str(store.home)},
        Path(os.environ.get(LOGS) or store.home / "logs" / "train" / key),
        lambda line: print(line, file=sys.stderr, flush=True),  # noqa: T201
        name=key,
    )
    if (made := store.find(KIND, key)) is None:
        raise InputError(_APART)
    return replace(made, reused=False)


def _sharing(store: ArtifactStore, key: str, work: Path) -> Callable[[int], None] | None:
    """Shares each checkpoint with the machines that share artifacts; None where none do."""
    from jora_tasks.trainer.checkpoint import checkpoint_files

    if store.shared is None:
        return None
    shared = store.shared.within(_CHECKPOINT_PATIENCE)
    return lambda step: keep(shared, KIND, key, work, step, checkpoint_files(work, step))


def _making(lora: LoraConfig, config: DecoderConfig) -> dict[str, Any]:
    """The adapter's settings for its key: the same however the same targets were written."""
    targets, layers = as_settings(config, lora_targets(config, lora))
    return lora.making() | {
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "layers_to_transform": list(layers),
    }


def _start(folder: Path, store: ArtifactStore) -> Input:
    """The adapter that training starts from: an artifact with its lineage, or a folder by its content."""
    if folder.parent == store.home / "artifacts" / KIND:
        return store.get(KIND, folder.name)
    files = [folder / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(f"lora.init_from: {missing[0]} is missing; give the folder of a PEFT adapter.")
    check_copy(folder)
    return Source(KIND, folder.name, digest_json({file.name: digest_file(file) for file in files}))


@contextlib.contextmanager
def _tracked(spec: RunSpec, key: str, store: ArtifactStore) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """What takes an update's metrics to the tracker of the spec."""
    from jora_tasks.trainer.metrics import CURVES

    if spec.training.tracker == "tensorboard":
        from jora_tasks.trainer.tensorboard import TensorBoard

        with contextlib.closing(TensorBoard(store.home / "tensorboard" / spec.name / key)) as board:
            yield board
    elif spec.training.tracker == "mlflow":
        from jora_tasks.registry import Registry

        curves = Registry(store.home).curves(spec.name, key, CURVES)
        try:
            yield curves
        except BaseException:
            curves.close(finished=False)
            raise
        curves.close(finished=True)
    else:
        yield lambda metrics: None


def _build_together(
    build: Callable[[Write], Artifact], write: Write, take_part: Callable[[], None]
) -> Artifact:
    """The first of several processes builds the artifact; the others take part in the training, if there is
    one, and find what was built in the home that they share."""
    from jora_tasks.trainer.distributed import from_first, initialize, is_first

    def announce(folder: Path) -> Mapping[str, Any]:
        from_first(lambda: "train")
        return write(folder)

    def refuse(folder: Path) -> Mapping[str, Any]:
        raise InputError(_APART)

    initialize()
    made = None
    if is_first():
        made = build(announce)
        if made.reused:
            from_first(lambda: "reuse")
    elif from_first(lambda: None) == "train":
        take_part()
    from_first(lambda: None)  # it is published now
    return made or build(refuse)


def _check_splits(prompts: Artifact, evaluated: bool) -> None:
    import pyarrow.parquet as pq

    splits = set(pq.read_table(prompts.file("prompts.parquet"), columns=["split"])["split"].to_pylist())
    if "train" not in splits:
        raise InputError(
            "There is no question to train on; give questions.path some questions with `split`: train, "
            "or lower questions.dev_fraction and questions.test_fraction."
        )
    if evaluated and "dev" not in splits:
        raise InputError(
            "training.eval_every asks for evaluations, but there is no dev question; give questions.path "
            "some with `split`: dev, raise questions.dev_fraction, or set training.eval_every to 0."
        )
