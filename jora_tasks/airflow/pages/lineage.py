"""The tab "RAG lineage" of a DAG run."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.common.db.common import SessionDep
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from fastapi import APIRouter, HTTPException, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from jora_tasks.airflow.pages import home
from jora_tasks.airflow.pages.access import RunDep
from jora_tasks.airflow.pages.costs import cost_rows
from jora_tasks.airflow.pages.graph import NAMES, draw
from jora_tasks.airflow.pages.moves import place_of
from jora_tasks.airflow.pages.nodes import GONE, WAITING
from jora_tasks.airflow.pages.rendering import page, prefix_of
from jora_tasks.airflow.pages.run_lineage import RunLineage, run_lineage, with_champion
from jora_tasks.errors import InputError

router = APIRouter()
ACTIVE = ("queued", "running")
REFRESH_SECONDS = 3


@router.get("/lineage")
def show(request: Request, run: RunDep, session: SessionDep) -> Response:
    """The graph of a run's artifacts, a table of them, and what to do next."""
    dag_id, run_id = run
    found = session.execute(
        select(DagRun.state, DagRun.run_after, DagRun.end_date).where(
            DagRun.dag_id == dag_id, DagRun.run_id == run_id
        )
    ).first()
    if found is None:
        raise HTTPException(404, f"Airflow has no run {run_id} of the DAG {dag_id}.")
    state, began, ended = found
    active = str(state) in ACTIVE
    made = run_lineage(home.store(), dag_id, run_id, active)
    made, trouble = _with_registry(made)
    return page(
        request,
        "lineage.html.j2",
        dag_id=dag_id,
        run_id=run_id,
        state=str(state),
        refresh=REFRESH_SECONDS if active else "",
        lineage=made,
        names=NAMES,
        graph=draw(made.nodes, prefix_of(request), f"Lineage of run {run_id}"),
        waiting=[NAMES[kind] for kind, node in made.nodes.items() if node.state == WAITING],
        gone=[NAMES[kind] for kind, node in made.nodes.items() if node.state == GONE],
        failed=_failed_tasks(session, dag_id, run_id),
        trouble=trouble,
        costs=cost_rows(home.store(), f"{dag_id}/{run_id}", began, ended),
    )


def _with_registry(made: RunLineage) -> tuple[RunLineage, str]:
    """The graph with its champion; without a registry that answers, as it is, and why."""
    if not made.registered:
        return made, ""
    name, version = str(made.registered.get("name", "")), int(made.registered.get("version", 0))
    try:
        registry = home.registry()
        champion = registry.get_champion(name)
        held = place_of(version, registry.transitions(name))
    except InputError as error:
        return made, str(error)
    return with_champion(made, champion.version if champion else None, held), ""


def _failed_tasks(session: Session, dag_id: str, run_id: str) -> list[dict[str, Any]]:
    """Tasks that failed by themselves, in a mapped one with its index."""
    rows = session.execute(
        select(TaskInstance.task_id, TaskInstance.map_index).where(
            TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id, TaskInstance.state == "failed"
        )
    )
    return [{"task_id": task, "map_index": index} for task, index in rows]
