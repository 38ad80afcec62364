"""Many triggers at once on a real Airflow, by hand as from a script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jora_tasks.airflow.client import AirflowApiError, AirflowClient
from jora_tasks.airflow.local import DAG_IDS

WORKERS = 4


def trigger_many(
    connect: Callable[[], AirflowClient], times: int, conf: Mapping[str, Mapping[str, Any]]
) -> tuple[Counter[str], list[str]]:
    """Trigger both DAGs in turn, several at once: how often each was accepted, and why it was refused."""

    def trigger(share: range) -> list[tuple[str, str]]:
        told = []
        with connect() as client:
            for number in share:
                dag_id = DAG_IDS[number % len(DAG_IDS)]
                try:
                    client.trigger(dag_id, dict(conf[dag_id]))
                    told.append((dag_id, ""))
                except AirflowApiError as error:
                    told.append((dag_id, str(error)))
        return told

    with ThreadPoolExecutor(WORKERS) as pool:
        answers = [each for share in pool.map(trigger, _shares(times)) for each in share]
    return Counter(dag_id for dag_id, error in answers if not error), [error for _, error in answers if error]


def states(client: AirflowClient, dag_id: str) -> Counter[str]:
    """How many runs of a DAG are in each state."""
    states = ("queued", "running", "success", "failed")
    totals = {
        state: client._call("GET", f"dags/{dag_id}/dagRuns", params={"state": state, "limit": "1"})
        for state in states
    }
    return Counter({state: total["total_entries"] for state, total in totals.items()})


def _shares(times: int) -> list[range]:
    return [range(first, times, WORKERS) for first in range(WORKERS)]
