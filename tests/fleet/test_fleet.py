"""The pipeline on a real fleet: Celery workers, PostgreSQL, Redis, an S3 server and MLflow's, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import httpx
import psutil
import pytest

from jora_tasks.airflow.client import AirflowClient
from jora_tasks.airflow.local import DAG_IDS
from jora_tasks.airflow.processes import marked
from jora_tasks.airflow.runs import progress_file, run_folder, spec_file
from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.lineage import trace
from jora_tasks.registry import Registry
from jora_tasks.shared_store import ARTIFACTS, SharedStore
from jora_tasks.shared_work import STATE
from jora_tasks.trainer.metrics import METRICS, read_metrics
from tests.airflow.triggers import states, trigger_many
from tests.fleet.driving import (
    SECONDS,
    as_a_worker_has_it,
    connect,
    connected,
    finished,
    logged_in,
    put_documents,
    require,
    start_worker,
)
from tests.fleet.topology import CONNECTED, CONTROL, ROOT, Fleet, fleet, start_redis, wait
from tests.tiny import write_project

EPOCHS = 400  # of two updates each
AWAY = 30  # seconds

pytestmark = pytest.mark.slow


def write_config(folder: Path) -> Path:
    """The tiny project; its documents are where all workers can read them."""
    spec = write_project(folder)
    settings = json.loads(spec.read_text())
    settings["documents"]["path"] = "s3://jora/documents"
    spec.write_text(json.dumps(settings))
    return spec


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    require()
    folder = tmp_path_factory.mktemp("fleet")
    with fleet(folder, write_config) as made:
        with pytest.MonkeyPatch.context() as patch:
            put_documents(made, patch)
        for service in ("worker", "gpu-worker"):
            start_worker(made, service, service)
        yield made


@pytest.fixture
def another_machine(running: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """The home of a machine that took no part."""
    as_a_worker_has_it(running, monkeypatch)
    return ArtifactStore(tmp_path)


@pytest.fixture(scope="module")
def client(running: Fleet) -> Iterator[AirflowClient]:
    with connected(running) as made:
        yield made


def test_documents_become_a_registered_adapter_on_a_fleet(
    running: Fleet, client: AirflowClient, another_machine: ArtifactStore
) -> None:
    run_id = client.trigger("document_index")["dag_run_id"]
    finished(client, "document_index", run_id, running)
    [run] = wait(lambda: client.dag_runs("adapter_training"), 120, "the run that the index starts")
    finished(client, "adapter_training", run["dag_run_id"], running)

    places = {
        task["task_id"]: task["queue"]
        for task in client.task_instances("adapter_training", run["dag_run_id"])
    }
    assert (places["contexts"], places["train"], places["evaluate"]) == ("default", "gpu", "gpu")

    store = another_machine
    adapter = store.latest("tiny", "adapter")
    assert adapter.manifest["provenance"]["airflow_run"] == f"adapter_training/{run['dag_run_id']}"
    tree = trace(store, adapter)
    corpus = tree["inputs"]["prompts"]["inputs"]["contexts"]["inputs"]["index"]["inputs"]["corpus"]
    assert [each["document_id"] for each in corpus["documents"]] == ["guide.md"]
    [version] = Registry(store.home).versions("tiny")
    assert version.digest == adapter.digest
    assert not fsspec.filesystem("s3").exists("jora/shared/work/adapter")
    with logged_in(running) as session:  # from the machine of the API server, which took no part either
        asked = {"dag_id": "adapter_training", "run_id": run["dag_run_id"]}
        page = session.get("/jora/lineage", params=asked).raise_for_status().text
    shown = ("adapter", "evaluation", "verdict", "contexts", "corpus")
    assert not [kind for kind in shown if store.latest("tiny", kind).key not in page]
    assert "tiny version 1" in page and "no longer in this home" not in page


def test_what_a_lost_worker_was_training_another_one_finishes(
    running: Fleet, client: AirflowClient, another_machine: ArtifactStore
) -> None:
    store = another_machine
    assert store.shared
    shared = store.shared
    before = set(shared.listed("artifacts", "adapter"))
    conf = {"training.epochs": EPOCHS, "training.checkpoint_every": 20}
    run_id = client.trigger("adapter_training", conf)["dag_run_id"]

    wait(lambda: kept(shared) >= 40, SECONDS, "a shared checkpoint")
    with logged_in(running) as session:  # the API server, which has no file of it
        asked = {"dag_id": "adapter_training", "run_id": run_id}
        wait(lambda: " of 800 steps" in session.get("/jora/lineage", params=asked).text, 60, "how far it is")
    lose(running, "gpu-worker")
    reached = kept(shared)
    start_worker(running, "gpu-worker", "second")
    finished(client, "adapter_training", run_id, running)

    [key] = set(shared.listed("artifacts", "adapter")) - before
    assert (running.folder / "second" / "jora" / "artifacts" / "adapter" / key).is_dir()
    metrics = read_metrics(store.get("adapter", key).file(METRICS))
    assert [each["step"] for each in metrics] == list(range(1, 2 * EPOCHS + 1))
    first = min(told_steps(running.folder / "second", run_id))
    assert first > reached - 20  # went on, rather than began anew
    task = next(
        each for each in client.task_instances("adapter_training", run_id) if each["task_id"] == "train"
    )
    assert task["try_number"] == 2


def test_a_run_outlasts_broker_database_and_object_store(
    running: Fleet, client: AirflowClient, another_machine: ArtifactStore, tmp_path: Path
) -> None:
    store, shared, registry = another_machine, another_machine.shared, Registry(another_machine.home)
    assert shared
    before, versions = set(shared.listed("artifacts", "adapter")), registry.versions("tiny")
    epochs = EPOCHS + 100
    conf = {"training.epochs": epochs, "training.checkpoint_every": 20}
    run_id = client.trigger("adapter_training", conf)["dag_run_id"]
    publishing = running.proxies["objects"].shut_at(b"PUT /jora/shared/artifacts/adapter/")

    wait(lambda: kept(shared) >= 20, SECONDS, "a shared checkpoint")
    running.kill("redis")
    start_redis(running)
    assert not publishing.is_set()
    with running.proxies["postgres"].away():
        time.sleep(AWAY)
    print(f"the database was away until update {kept(shared)} of {2 * epochs}")
    wait(publishing.is_set, SECONDS, "the adapter is about to be published")
    time.sleep(AWAY)
    running.proxies["objects"].open()
    finished(client, "adapter_training", run_id, running)

    [key] = set(shared.listed("artifacts", "adapter")) - before
    adapter = store.get("adapter", key)
    [version] = [each for each in registry.versions("tiny") if each not in versions]
    assert version.digest == adapter.digest
    name, told = max(
        ((name, told_steps(running.folder / name, run_id)) for name in ("gpu-worker", "second")),
        key=lambda each: len(each[1]),
    )
    assert told == list(range(1, 2 * epochs + 1))
    spec = spec_file(run_folder(running.folder / name / "jora", "adapter_training", run_id))
    assert losses(adapter) == losses(trained_alone(store, spec, adapter, tmp_path / "alone"))

    def begins_with() -> Any:
        with logged_in(running) as session:
            return session.get("/api/v2/dags/adapter_training/details").json()["params"]["training.epochs"][
                "value"
            ]

    wait(lambda: begins_with() == epochs, SECONDS, "the form that begins with the settings of this run")


def trained_alone(store: ArtifactStore, spec: Path, adapter: Artifact, home: Path) -> Artifact:
    """The same training in a home that shares nothing."""
    prompts = store.get("prompts", adapter.manifest["inputs"]["prompts"]["key"])
    shutil.copytree(prompts.path, home / "artifacts" / "prompts" / prompts.key)
    command = [sys.executable, "-m", "jora_tasks.cli", "train", "--spec", str(spec), "--json"]
    environment = {name: value for name, value in os.environ.items() if name != ARTIFACTS}
    subprocess.run(
        [*command, "--prompts", prompts.key], env=environment | {"JORA_HOME": str(home)}, check=True, cwd=ROOT
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(ARTIFACTS)
        return ArtifactStore(home).get("adapter", adapter.key)


def losses(adapter: Artifact) -> list[float]:
    return [metrics["loss"] for metrics in read_metrics(adapter.file(METRICS))]


def kept(shared: SharedStore) -> int:
    """The update of the newest checkpoint that machines share; 0 if there is none."""
    for key in shared.listed("work", "adapter"):
        if state := shared.read("work", "adapter", key, STATE):
            return int(json.loads(state)["step"])
    return 0


def lose(made: Fleet, name: str) -> None:
    """End a worker and all that runs in its home, as when its machine is switched off."""
    made.kill(name)
    for process in marked("JORA_HOME", str(made.folder / name / "jora")):
        with contextlib.suppress(psutil.Error):
            process.kill()


def told_steps(machine: Path, run_id: str) -> list[int]:
    """The updates that this machine told of."""
    file = progress_file(run_folder(machine / "jora", "adapter_training", run_id))
    if not file.exists():
        return []
    events = map(json.loads, file.read_text().splitlines())
    return [event["done"] for event in events if event["stage"] == "train" and event["unit"] == "steps"]


def test_two_hundred_triggers_train_nothing_twice(
    running: Fleet, client: AirflowClient, another_machine: ArtifactStore
) -> None:
    """All are taken, one of each DAG runs at a time, and what is made already is found again."""
    shared, registry = another_machine.shared, Registry(another_machine.home)
    assert shared

    def made() -> tuple[Any, ...]:
        return shared.listed("artifacts", "adapter"), registry.versions("tiny"), registry.get_champion("tiny")

    before, started = made(), time.monotonic()
    ended = {dag_id: states(client, dag_id)["success"] for dag_id in DAG_IDS}
    taken, refused = trigger_many(lambda: connect(running), 200, {dag_id: {} for dag_id in DAG_IDS})
    print(f"taken within {time.monotonic() - started:.0f} s")
    assert (refused, sum(taken.values())) == ([], 200)

    def further(dag_id: str) -> int:
        now = states(client, dag_id)
        assert now["running"] <= 1 and now["failed"] == 0
        return now["success"] - ended[dag_id]

    wait(lambda: further("document_index") >= 3 and further("adapter_training") >= 1, SECONDS, "some ends")
    assert made() == before
    # The rest would end alike, an hour later.
    wait(lambda: not [each for dag_id in DAG_IDS for each in client.cancel_unfinished(dag_id)], 120, "an end")
    assert made() == before


def test_the_api_asks_for_a_login(running: Fleet, client: AirflowClient) -> None:
    with httpx.Client(base_url=running.url, verify=running.trust, trust_env=False) as stranger:
        for path in ("/api/v2/dags", "/jora/adapters", "/api/v2/connections"):
            assert stranger.get(path).status_code in (401, 403), path
        assert stranger.get("/auth/token").status_code != 201


def test_api_broker_and_registry_speak_tls_alone(running: Fleet, client: AirflowClient) -> None:
    """Each by a certificate of the fleet's own authority, which no one else trusts."""
    for service in ("api-server", "mlflow", "redis"):
        address = ("127.0.0.1", running.ports[service])
        with (
            socket.create_connection(address) as plain,
            running.trust.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            assert secure.version() == "TLSv1.3", service
        with socket.create_connection(address) as plain, pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")
    for service in (*CONTROL, "worker", "gpu-worker"):
        assert running.environment(service)["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"].startswith("https://")


def test_workers_hold_no_more_credentials_than_they_need(running: Fleet) -> None:
    for service in ("worker", "gpu-worker"):
        environment = " ".join(running.environment(service).values())
        for name in ("POSTGRES_PASSWORD", "JWT_SECRET", "FERNET_KEY", "PAGES_SECRET"):
            assert running.variables[name] not in environment, (service, name)
    for service in CONTROL:
        assert running.variables["JWT_SECRET"] in running.environment(service).values()


def test_what_a_connection_keeps_is_in_no_file(
    running: Fleet, client: AirflowClient, another_machine: ArtifactStore
) -> None:
    """The GPU worker trained, and the API server shows what only the object store has, by the connection."""
    secret = running.variables["OBJECTS_SECRET"]
    for service in CONNECTED:
        assert secret not in " ".join(running.environment(service).values())
    places = ("gpu-worker", "logs", "api-server", "gpu-worker.log", "api-server.log")
    found = [running.folder / place for place in places]
    files = [file for place in found for file in (place, *place.rglob("*")) if file.is_file()]
    assert len(files) > 20
    assert not [file for file in files if secret.encode() in file.read_bytes()]
    corpus = another_machine.latest("tiny", "corpus").key
    assert not (running.folder / "api-server" / "jora" / "artifacts").exists()
    with logged_in(running) as session:
        page = session.get(f"/jora/artifacts/corpus/{corpus}").raise_for_status().text
        documents = session.get(f"/jora/artifacts/corpus/{corpus}/documents").raise_for_status().text
    assert corpus in page and secret not in page and "guide.md" in documents
