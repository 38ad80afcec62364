"""The main job on the demo's data, inside a real local Airflow: write, start, trigger, follow, show."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console

from jora_tasks.airflow import local
from jora_tasks.airflow.client import AirflowClient
from jora_tasks.airflow.ports import choose_port
from jora_tasks.airflow.runs import progress_file, run_folder
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.demo import demo_spec, write_demo
from jora_tasks.demo.follow import follow_run
from jora_tasks.models import base_model_folder, embedder_folder
from jora_tasks.progress import BUILT, REUSED, Event, Sink
from jora_tasks.spec import RunSpec, dump_spec
from jora_tasks.summary import print_places, print_summary, summarise
from jora_tasks.writing import write_text

INDEX_DAG, TRAINING_DAG = local.DAG_IDS
TRIGGER_SECONDS = 120.0

NewSink = Callable[[], AbstractContextManager[Sink]]


class DemoError(RuntimeError):
    """A DAG run of the demo failed; the message says which, and ends with its task's last lines."""


def demo_folder(home: Path) -> Path:
    """Where the demo's documents, questions and spec lie."""
    return home / "demo"


def spec_file(home: Path) -> Path:
    return demo_folder(home) / "spec.yaml"


def run_demo(home: Path, console: Console, new_sink: NewSink, port: int | None = None) -> dict[str, Any]:
    """Run the demo and return its summary, also kept in ``demo-summary.json`` of the home.

    Airflow is stopped at the end, however it comes, unless it ran before.

    Args:
      home: ``$JORA_HOME``.
      console: for what is said.
      new_sink: makes what shows the events of one DAG run.
      port: of the Airflow UI; by default 8080, or a free one if that is taken.

    Raises:
      InputError: the port asked for is taken.
      DemoError: a DAG run failed.
    """
    ran_before = local.running(home) is not None
    if not ran_before:
        choose_port(port)  # refused before anything is written
    spec = _prepare(home, console)
    airflow = local.start(home, spec_file(home), port, report=lambda text: console.print(f"[dim]{text}[/]"))
    try:
        with airflow.client() as client:
            try:
                dag_runs, events = _run_dags(client, home, console, new_sink)
            except BaseException:
                console.print("[dim]Stopping the runs ...[/]")
                _cancel(client)
                raise
    finally:
        if not ran_before:
            console.print("[dim]Stopping Airflow ...[/]")
            local.stop(home)
            console.print("[dim]Airflow stopped[/]")
    summary = _summary(ArtifactStore(home), spec.name, dag_runs, events)
    write_text(home / "demo-summary.json", json.dumps(summary, indent=2) + "\n")
    print_summary(summary, console)
    print_places(_places(home, summary), console)
    return summary


def _summary(
    store: ArtifactStore, name: str, dag_runs: Mapping[str, str], events: Sequence[Event]
) -> dict[str, Any]:
    """What the runs came to, with the last outcome of each stage and the seconds it took."""
    ended = {event.stage: event for event in events if event.state in (BUILT, REUSED)}
    return {
        "dag_runs": dict(dag_runs),
        **summarise(store, name, ended["register"].fields),
        "seconds": {stage: event.fields["seconds"] for stage, event in ended.items()},
        "reused": sorted(stage for stage, event in ended.items() if event.state == REUSED),
    }


def _prepare(home: Path, console: Console) -> RunSpec:
    """Write documents, questions and spec, the same ones each time, and have the models at hand."""
    folder = demo_folder(home)
    counts = write_demo(folder)
    spec = demo_spec(folder)
    write_text(spec_file(home), dump_spec(spec))
    written = ", ".join(f"{number} {name}" for name, number in counts.items())
    console.print(f"Documents and questions written: {written}", soft_wrap=True)
    base_model_folder(spec.model.base, home)
    embedder_folder(spec.index.embedder, home)
    return spec


def _run_dags(
    client: AirflowClient, home: Path, console: Console, new_sink: NewSink
) -> tuple[dict[str, str], list[Event]]:
    _cancel(client)  # what a killed demo left
    index_run = client.trigger(INDEX_DAG)["dag_run_id"]
    states: dict[str, str] = {}
    states[INDEX_DAG], events = _follow(client, home, console, new_sink, INDEX_DAG, index_run)
    training_run = _triggered_run(client, index_run)
    states[TRAINING_DAG], more = _follow(client, home, console, new_sink, TRAINING_DAG, training_run)
    return states, events + more


def _follow(
    client: AirflowClient,
    home: Path,
    console: Console,
    new_sink: NewSink,
    dag_id: str,
    run_id: str,
) -> tuple[str, list[Event]]:
    console.print(f"[bold]{dag_id}[/] {run_id}", highlight=False)
    file = progress_file(run_folder(home, dag_id, run_id))
    with new_sink() as sink:
        state, events = follow_run(lambda: client.dag_run(dag_id, run_id)["state"], file, sink)
    if state != "success":
        raise DemoError(_why(client, dag_id, run_id))
    return state, events


def _triggered_run(client: AirflowClient, index_run: str) -> str:
    """The training run that the index asset's event started."""
    deadline = time.monotonic() + TRIGGER_SECONDS
    while time.monotonic() < deadline:
        for run in client.triggered_runs(INDEX_DAG, index_run):
            if run["dag_id"] == TRAINING_DAG:
                return run["run_id"]
        time.sleep(0.5)
    raise DemoError(f"{INDEX_DAG} {index_run} ended, but its index asset started no run of {TRAINING_DAG}.")


def _why(client: AirflowClient, dag_id: str, run_id: str) -> str:
    failed = [task for task in client.task_instances(dag_id, run_id) if task["state"] == "failed"]
    lines = [f"{dag_id} {run_id} failed in {', '.join(task['task_id'] for task in failed) or 'no task'}."]
    for task in failed:
        lines += client.task_log(dag_id, run_id, task["task_id"], task["try_number"], lines=10)
    return "\n".join(lines)


def _cancel(client: AirflowClient) -> None:
    for dag_id in local.DAG_IDS:
        with contextlib.suppress(Exception):
            client.cancel_unfinished(dag_id)


def _places(home: Path, summary: Mapping[str, Any]) -> dict[str, str]:
    return {
        "adapter": summary["adapter"],
        "report": summary["report"],
        "verdict": summary["verdict"],
        "registry": str(home / "mlflow"),
        "summary": str(home / "demo-summary.json"),
        "Airflow UI": "make up   (make down stops it)",
    }
