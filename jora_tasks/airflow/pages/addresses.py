"""Addresses within the pages; every part is quoted."""

from __future__ import annotations

from urllib.parse import quote, urlencode


def address(*parts: object, **query: object) -> str:
    """``address("adapters", "a b", page=2)`` is ``/adapters/a%20b?page=2``; empty values are left out."""
    path = "".join(f"/{quote(str(part), safe='')}" for part in parts)
    given = {name: value for name, value in query.items() if value not in ("", None)}
    return f"{path}?{urlencode(given)}" if given else path


def airflow_run(prefix: str, dag_id: str, run_id: str, task_id: str = "", map_index: int = -1) -> str:
    """Airflow's own page of a run, or of a task in it.

    Its tabs are not found under an address that quotes the colons and plus signs of a run id.
    """
    parts = ["dags", dag_id, "runs", run_id, *(("tasks", task_id) if task_id else ())]
    parts += ["mapped", str(map_index)] if map_index >= 0 else []
    return prefix + "".join(f"/{quote(part, safe=':+')}" for part in parts)
