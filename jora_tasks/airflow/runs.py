"""Where a DAG run keeps its spec and the progress of its stages."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path


def run_folder(home: Path, dag_id: str, run_id: str) -> Path:
    """The folder of one DAG run: ``$JORA_HOME/runs/<dag_id>/<run_id>/``.

    Characters of the run id that a file name should not have become ``_``, and a digest is added to
    keep run ids apart.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", run_id)
    if name != run_id or name.startswith("."):
        name = f"run_{name}" if name.startswith(".") else name
        name += f".{hashlib.sha256(run_id.encode()).hexdigest()[:8]}"
    return home / "runs" / dag_id / name


def spec_file(folder: Path, variant: int = -1) -> Path:
    """The settings of the run, or of one variant of a sweep."""
    return folder / ("spec.yaml" if variant < 0 else f"spec-{variant}.yaml")


def good_spec_file(home: Path, dag_id: str) -> Path:
    """The settings of the DAG's last good run among those that someone started with settings of their own."""
    return home / "runs" / dag_id / "good.yaml"


def good_spec_variable(dag_id: str) -> str:
    """The variable of Airflow that has them where machines share artifacts: JSON, `begun_with` and `spec`."""
    return f"jora_form_{dag_id}"


def begun_with_file(folder: Path) -> Path:
    """Which spec file the run began with, see `params.base_mark`."""
    return folder / "begun_with"


def progress_file(folder: Path) -> Path:
    """JSON lines, one an event, that the run's stages append to as they work."""
    return folder / "progress.jsonl"


def job_folder(folder: Path, task_id: str, map_index: int = -1) -> Path:
    """Where a task of this run keeps its detached job."""
    return folder / "jobs" / (task_id if map_index < 0 else f"{task_id}-{map_index}")
