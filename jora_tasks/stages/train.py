"""prompts + base model → adapter: the PEFT folder that training makes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jora_tasks.artifacts import Artifact, ArtifactStore, Input
from jora_tasks.errors import InputError
from jora_tasks.models import base_model_folder, model_source
from jora_tasks.progress import Progress
from jora_tasks.spec import RunSpec

KIND = "adapter"
VERSION = 1
FIGURES = ("loss", "learning_rate", "tokens_per_second", "eta_seconds")


def train_adapter(spec: RunSpec, prompts: Artifact, store: ArtifactStore, progress: Progress) -> Artifact:
    """Train the adapter that these prompts, this base model and these settings make.

    Checkpoints lie in the store's work folder of the artifact's key, so a stage that was killed goes on
    where it was. How often they are made and how many devices share the work belong to no key.

    Returns:
      The artifact: ``adapter_config.json``, ``adapter_model.safetensors``, ``README.md``,
      ``metrics.jsonl``, ``summary.json`` and, where prompts were left out for their length,
      ``skipped.jsonl``; counts of steps, epochs, examples and tokens, final loss and speed.

    Raises:
      InputError: without a question to train on, or if the base model or the training prompts cannot
        be used.
    """
    _check_split(prompts)
    base = base_model_folder(spec.model.base, store.home)
    source = model_source(base, spec.model.base)
    lora = {**spec.lora.model_dump(mode="json"), "target_modules": list(spec.lora.targets)}
    settings = {"lora": lora, "training": spec.training.making(), "dtype": spec.model.dtype}
    inputs: dict[str, Input] = {"prompts": prompts, "base_model": source}
    work = store.work_folder(KIND, store.key(KIND, version=VERSION, settings=settings, inputs=inputs))

    def on_step(metrics: Mapping[str, Any]) -> None:
        progress(
            "train",
            done=metrics["step"],
            total=metrics["total_steps"],
            unit="steps",
            **{name: metrics[name] for name in FIGURES},
        )

    def write(folder: Path) -> Mapping[str, Any]:
        from jora_tasks.trainer.data import Dataset
        from jora_tasks.trainer.train import SUMMARY, train_lora

        train_lora(
            base,
            Dataset.from_prompts(prompts.file("prompts.parquet"), split="train"),
            spec.lora,
            spec.training,
            output=folder,
            work=work,
            base_name=source.name,
            dtype=spec.model.dtype,
            on_step=on_step,
        )
        summary: Mapping[str, Any] = json.loads((folder / SUMMARY).read_text())
        return summary

    artifact = store.build(
        KIND,
        version=VERSION,
        settings=settings,
        inputs=inputs,
        write=write,
        provenance={"mesh": spec.training.mesh.model_dump()},
    )
    shutil.rmtree(work, ignore_errors=True)
    return artifact


def _check_split(prompts: Artifact) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(
        prompts.file("prompts.parquet"), columns=["split"], filters=[("split", "=", "train")]
    )
    if table.num_rows == 0:
        raise InputError(
            "There is no question to train on; give questions.path some questions with `split`: train, "
            "or lower questions.dev_fraction and questions.test_fraction."
        )
