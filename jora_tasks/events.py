"""OpenLineage events that Airflow does not make: of stages run by hand, and of every move of the champion.

A move is told from the registry's history, so none is lost whoever made it and whoever was killed: each home
remembers how many moves of a registry's line it has told. Its run id follows from the move, so that homes
that share a registry tell the same run.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.datasets import (
    NAMESPACE,
    Datasets,
    cost_facets,
    datasets,
    move_datasets,
    registration_datasets,
)
from jora_tasks.errors import first_line
from jora_tasks.lineage import events_file
from jora_tasks.outbox import OutboxConfig, OutboxTransport
from jora_tasks.registry import Registry, Transition
from jora_tasks.registry.client import without_password
from jora_tasks.writing import write_text

Emit = Callable[[Any], None]

_log = logging.getLogger(__name__)


def result_datasets(
    store: ArtifactStore, result: Mapping[str, Any], keys: Mapping[str, str], documents: str = ""
) -> Datasets:
    """Datasets of a finished stage.

    Args:
      result: the JSON object that the stage's command printed.
      keys: kind → key of the artifacts that the stage took.
      documents: where the documents lie.
    """
    if "kind" in result:
        return datasets(store, store.get(result["kind"], result["key"]), documents, result.get("snapshot"))
    if "version" in result:
        taken = [store.get(kind, key) for kind, key in keys.items()]
        return registration_datasets(store, taken, result["name"], result["version"])
    return [], []  # a shard: what it leaves in the cache has no version, and the index tells the rest


def tell_stage(
    store: ArtifactStore, result: Mapping[str, Any], keys: Mapping[str, str], documents: str = ""
) -> None:
    """Tell of a stage that ended well outside of Airflow; a failure to tell is logged and costs nothing."""
    from openlineage.client.event_v2 import RunState
    from openlineage.client.uuid import generate_new_uuid

    try:
        inputs, outputs = result_datasets(store, result, keys, documents)
        ended = datetime.now(UTC)
        started = ended - timedelta(seconds=result["seconds"])
        run, emit = str(generate_new_uuid(started)), home_outbox(store)
        emit(_event(RunState.START, started, run, result["stage"], [], []))
        facets = cost_facets(result)
        emit(_event(RunState.COMPLETE, ended, run, result["stage"], inputs, outputs, facets))
        if "version" in result:
            tell_moves(store, result["name"], emit)
    except Exception as error:
        _log.warning("What stage %s did could not be told to OpenLineage: %s", result["stage"], _words(error))


def tell_moves(store: ArtifactStore, name: str, emit: Emit, parents: Mapping[str, Any] | None = None) -> int:
    """Tell of every move of a champion that this home has not told of.

    Args:
      emit: takes an event.
      parents: ``dag_id/run_id`` → parent facet of the moves that this run made.

    Returns:
      How many there were.
    """
    registry = Registry(store.home)
    file = store.home / "openlineage" / "moves" / f"{name}{registry.place}"
    file.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{file}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = int(file.read_text()) if file.is_file() else 0
        moves = registry.transitions(name)[told:]
        for number, move in enumerate(moves, start=told + 1):
            emit(move_event(name, number, move, (parents or {}).get(move.airflow_run)))
            write_text(file, str(number))
    return len(moves)


def tell_moves_here(store: ArtifactStore, name: str) -> None:
    """`tell_moves` to the home's outbox; a failure is logged, and the next telling makes up for it."""
    try:
        tell_moves(store, name, home_outbox(store))
    except Exception as error:
        _log.warning("The champion's move could not be told to OpenLineage: %s", _words(error))


def _words(error: Exception) -> str:
    """MLflow's errors hold the server's address, and that a password."""
    return without_password(first_line(error))


def move_event(name: str, number: int, move: Transition, parent: Any = None) -> Any:
    """The COMPLETE event of one move: who, why and in place of which are the run's tags."""
    from openlineage.client.event_v2 import RunState
    from openlineage.client.facet_v2 import tags_run
    from openlineage.client.uuid import generate_static_uuid

    at = datetime.fromisoformat(move.at)
    told = {
        "by": move.by,
        "reason": move.reason,
        "previous": "" if move.previous is None else str(move.previous),
        "verdict": move.verdict,
        "airflow_run": move.airflow_run,
    }
    tags = [tags_run.TagsRunFacetFields(key, value, NAMESPACE) for key, value in told.items() if value]
    facets = {"tags": tags_run.TagsRunFacet(tags=tags)} | ({"parent": parent} if parent else {})
    run = str(generate_static_uuid(at, f"{name}/{number}".encode()))
    return _event(RunState.COMPLETE, at, run, move.action, *move_datasets(name, move.version), facets)


def home_outbox(store: ArtifactStore) -> Emit:
    """Takes events to the home's outbox."""
    return OutboxTransport(OutboxConfig(str(events_file(store.home)))).emit


def _event(
    state: Any, at: datetime, run: str, job: str, inputs: Any, outputs: Any, facets: Any = None
) -> Any:
    from openlineage.client.event_v2 import Job, Run, RunEvent
    from openlineage.client.facet_v2 import job_type_job

    kind = job_type_job.JobTypeJobFacet(processingType="BATCH", integration="JORA", jobType="TASK")
    return RunEvent(
        eventType=state,
        eventTime=at.isoformat(),
        run=Run(runId=run, facets=facets or {}),
        job=Job(namespace=NAMESPACE, name=f"jora.{job}", facets={"jobType": kind}),
        inputs=inputs,
        outputs=outputs,
    )
