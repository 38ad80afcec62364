"""What the tests of a fleet do with it: start workers, log in, wait for runs."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import fsspec
import httpx
import pytest

from jora_tasks.airflow.client import AirflowApiError, AirflowClient
from tests.fleet.topology import PASSWORD, Fleet, missing, wait

SECONDS = 600


def require() -> None:
    """Skip the tests where a fleet cannot be, or fail them where it has to."""
    if lack := missing():
        if os.environ.get("JORA_FLEET_REQUIRED"):
            pytest.fail(lack)
        pytest.skip(lack)


def put_documents(made: Fleet, patch: pytest.MonkeyPatch) -> None:
    as_a_worker_has_it(made, patch)
    fsspec.filesystem("s3").put(f"{made.folder / 'config' / 'documents'}/", "jora/documents/", recursive=True)


def as_a_worker_has_it(made: Fleet, patch: pytest.MonkeyPatch) -> None:
    """The environment that leads to the store and the registry."""
    for name, value in made.environment("worker").items():
        if name.startswith(("AWS", "JORA_ARTIFACTS", "MLFLOW")):
            patch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()


def start_worker(made: Fleet, service: str, name: str) -> None:
    made.start(service, name, ("--skip-serve-logs", "--celery-hostname", f"{name}@%h"))


@contextlib.contextmanager
def connected(running: Fleet) -> Iterator[AirflowClient]:
    """The client of a fleet, once that is ready."""
    with connect(running) as made:
        wait(lambda: ready(made), SECONDS, f"Airflow\n{running.log('api-server')}")
        add_connection(running)
        yield made


def add_connection(made: Fleet) -> None:
    """The object store's credentials, for those that do not have them in their environment."""
    given = made.environment("worker")
    extra = {"endpoint_url": given["AWS_ENDPOINT_URL"], "region_name": given["AWS_DEFAULT_REGION"]}
    connection = {
        "connection_id": "jora_artifacts",
        "conn_type": "aws",
        "login": given["AWS_ACCESS_KEY_ID"],
        "password": given["AWS_SECRET_ACCESS_KEY"],
        "extra": json.dumps(extra),
    }
    with logged_in(made) as session:
        session.post("/api/v2/connections", json=connection).raise_for_status()


@contextlib.contextmanager
def logged_in(made: Fleet) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=made.url, verify=made.trust, trust_env=False, timeout=60) as session:
        login = session.post("/auth/token", json={"username": "admin", "password": PASSWORD})
        session.headers["Authorization"] = f"Bearer {login.raise_for_status().json()['access_token']}"
        yield session


def connect(running: Fleet) -> AirflowClient:
    return AirflowClient(running.url, login=("admin", PASSWORD), trust=running.trust)


def ready(client: AirflowClient) -> bool:
    try:
        health = client.health()
        parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
        dags = [client.dag(dag) for dag in ("document_index", "adapter_training")]
        return all(health[part]["status"] == "healthy" for part in parts) and all(dags)
    except (httpx.HTTPError, AirflowApiError):
        return False


def finished(client: AirflowClient, dag_id: str, run_id: str, fleet: Fleet) -> dict[str, Any]:
    """The run once it has ended; its tasks' states and a log of what failed are told if it failed."""
    run = wait(
        lambda: (found := client.dag_run(dag_id, run_id))["state"] not in ("queued", "running") and found,
        SECONDS,
        f"{dag_id} {run_id}",
    )
    if run["state"] != "success":
        tasks = client.task_instances(dag_id, run_id)
        logs = [
            client.task_log(dag_id, run_id, task["task_id"], task["try_number"])
            for task in tasks
            if task["state"] == "failed"
        ]
        states = {task["task_id"]: task["state"] for task in tasks}
        pytest.fail(f"{states}\n{logs}\n{fleet.log('worker')}\n{fleet.log('gpu-worker')}")
    return run
