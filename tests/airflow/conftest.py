"""An Airflow for tests: a home and a database of its own, set before anything imports Airflow."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HOME = Path(tempfile.mkdtemp(prefix="airflow-tests-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ.update(
    {
        "AIRFLOW_HOME": str(HOME),
        "AIRFLOW__CORE__UNIT_TEST_MODE": "True",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
        "AIRFLOW__OPENLINEAGE__TRANSPORT": (
            f'{{"type": "jora_tasks.outbox.OutboxTransport", "log_file_path": "{HOME}/events.jsonl", '
            '"retry_seconds": 0}'
        ),
        "AIRFLOW__OPENLINEAGE__EXECUTE_IN_THREAD": "True",
    }
)

# Stands for `jora` where a test is about the task and not about the stage: says what it was given.
ECHO = """
import json, os, sys
stage, options = sys.argv[1], sys.argv[2:]
kind = {"train": "adapter", "evaluate": "evaluation", "gate": "verdict"}.get(stage, stage)
print(f"{stage} 1/2", file=sys.stderr, flush=True)
print("noise before the result")
print(json.dumps({
    "stage": stage, "state": "built", "kind": kind, "key": f"{stage}key", "digest": f"sha256:{stage}",
    "path": "/nowhere", "counts": {"n": 1}, "snapshot": "sha256:corpus", "seconds": 0.1, "options": options,
    "name": "documents", "version": 1, "promotion": "automatic", "awaiting_approval": False,
    "verdict": {"alias": "candidate", "checks": []},
    "environment": {name: value for name, value in os.environ.items()
                    if name.startswith(("AIRFLOW", "JORA"))},
}))
"""


@pytest.fixture(scope="session")
def airflow_db() -> None:
    """Creates Airflow's tables, once."""
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture(autouse=True)
def no_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded default, whatever the environment of the tests names."""
    monkeypatch.delenv("JORA_SPEC", raising=False)


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    """Makes a command of Python source."""

    def make(source: str) -> tuple[str, ...]:
        file = tmp_path / "command.py"
        file.write_text(source)
        return (sys.executable, str(file))

    return make


@pytest.fixture
def echo(script: Callable[[str], tuple[str, ...]]) -> tuple[str, ...]:
    return script(ECHO)


@pytest.fixture(scope="session")
def run_dag(airflow_db: None) -> Callable[..., Any]:
    """Runs one of the project's DAGs in this process with `dag.test()` and returns its DagRun.

    Give ``command`` to run something else than `jora` in every task.
    """
    from airflow.dag_processing.dagbag import DagBag

    def run(dag_id: str, conf: dict[str, Any] | None = None, command: tuple[str, ...] | None = None) -> Any:
        bag = DagBag(str(ROOT / "dags"))
        assert not bag.import_errors
        dag = bag.dags[dag_id]
        for task in dag.tasks:
            task.retries = 0
            if command and hasattr(task, "partial_kwargs"):
                task.partial_kwargs["command"] = command
            elif command:
                task.command = command
        return dag.test(run_conf=conf or {})

    return run
