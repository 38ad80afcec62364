"""Kills and stops on a real local Airflow while it trains; one start of Airflow serves all tests."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest

from jora_tasks.airflow import local
from jora_tasks.airflow.client import AirflowClient
from jora_tasks.airflow.components import _last_scheduler
from jora_tasks.airflow.environment import OWNER
from jora_tasks.airflow.job import jobs
from jora_tasks.airflow.ports import choose_port
from jora_tasks.airflow.processes import members
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.launching.settings import HOSTS
from jora_tasks.outbox import API_KEY
from jora_tasks.progress import Progress
from jora_tasks.registry import Registry
from jora_tasks.spec import load_spec
from jora_tasks.stages.pipeline import run_stage
from tests.airflow.planting import SECRETS, Planted, contents, found, planted
from tests.airflow.training import DAG, EPOCHS, Training, wait_for
from tests.airflow.triggers import states, trigger_many

FREE_PORT = choose_port(None, default=8181)


@pytest.fixture(scope="module")
def secrets(empty_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    """In the environment of the Airflow that runs."""
    with planted(tmp_path_factory.mktemp("secrets"), empty_registry) as made:
        yield made


@pytest.fixture(scope="module")
def home(secrets: Planted, tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a running Airflow; contexts and prompts are made, so that runs come to training at once."""
    folder = tmp_path_factory.mktemp("survival") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AIRFLOW__OPENLINEAGE__TRANSPORT", raising=False)
        patch.setenv("JORA_HOME", str(folder))
        for name, value in secrets.environment.items():
            patch.setenv(name, value)
        store, spec = ArtifactStore(folder), load_spec(tiny_project)
        for stage in ("corpus", "index", "contexts", "prompts"):
            run_stage(stage, spec, store, Progress())
        try:
            local.start(folder, tiny_project, FREE_PORT)
            yield folder
        finally:
            local.stop(folder)


@pytest.fixture
def start(home: Path, tiny_project: Path) -> Iterator[Callable[..., Training]]:
    """Starts a training of its own and waits until it is in the middle; what is left is failed at the end."""
    clients = []

    def make(seed: int, **settings: Any) -> Training:
        client = local.start(home, tiny_project, FREE_PORT).client()  # the one that runs, if one does
        clients.append(client)
        conf = {"training.epochs": EPOCHS, "training.seed": seed, **settings}
        training = Training(home, client, client.trigger(DAG, conf)["dag_run_id"])
        training.in_the_middle()
        return training

    yield make
    for client in clients:
        with contextlib.suppress(Exception):
            client.cancel_unfinished(DAG)
        client.close()
    for job in jobs(home):
        job.stop()


@pytest.mark.slow
def test_no_planted_secret_is_found_after_a_run(home: Path, secrets: Planted):
    """From documents to a signed, registered adapter, and a run that fails; in no file and on no page."""
    airflow = local.running(home)
    assert airflow is not None
    with airflow.client() as client:
        good = client.trigger(DAG, {})["dag_run_id"]
        bad = client.trigger("document_index", {"documents.path": str(home / "nowhere")})["dag_run_id"]
        for dag_id, run_id, state in ((DAG, good, "success"), ("document_index", bad, "failed")):
            wait_for(lambda run=(dag_id, run_id): client.dag_run(*run)["state"] in ("success", "failed"), 400)
            assert client.dag_run(dag_id, run_id)["state"] == state
        answers = list(pages(client, [(DAG, good), ("document_index", bad)]))
    assert {event["authorization"] for event in secrets.events} == {
        f"Bearer {SECRETS[API_KEY]}"
    }  # it was used
    assert list((home / "provenance").rglob("*.json")) and list(secrets.registry.rglob("adapter_config.json"))
    texts = [*contents(home), *contents(secrets.registry), *answers]
    print(f"searched {len(texts)} files and answers, {sum(len(text) for _, text in texts):,} bytes")
    assert found(secrets.needles, texts) == []


def pages(client: AirflowClient, runs: list[tuple[str, str]]) -> Iterator[tuple[str, bytes]]:
    """What Airflow's API and the plugin's pages say of runs."""
    paths = ["/api/v2/config", "/api/v2/connections", "/api/v2/variables", "/api/v2/eventLogs?limit=100"]
    paths += ["/api/v2/assets/events", "/api/v2/importErrors", "/api/v2/jobs", "/api/v2/plugins"]
    paths += ["/jora/adapters", "/jora/adapters/tiny"]
    for dag_id, run_id in runs:
        run = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id)}"
        paths += [run, f"{run}/taskInstances", f"/jora/lineage?dag_id={dag_id}&run_id={quote(run_id)}"]
        for task in client.task_instances(dag_id, run_id):
            of = f"{run}/taskInstances/{task['task_id']}"
            paths += [f"{of}/xcomEntries/return_value", f"{of}/logs/1?full_content=true"]
    for path in paths:
        answer = client._send("GET", f"../..{path}", {})
        yield path, answer.content


@pytest.mark.slow
def test_two_hundred_triggers_at_once_are_all_taken(home: Path, tiny_project: Path):
    """From four clients, with the first runs under way, which have the same settings and train once."""
    airflow = local.start(home, tiny_project, FREE_PORT)

    def made() -> tuple[int, int]:
        return len(list((home / "artifacts" / "adapter").glob("*"))), len(Registry(home).versions("tiny"))

    with airflow.client() as client:
        known, before = {dag_id: by_hand(client, dag_id) for dag_id in local.DAG_IDS}, made()
        started = time.monotonic()
        taken, refused = trigger_many(airflow.client, 200, {dag_id: {} for dag_id in local.DAG_IDS})
        print(f"taken within {time.monotonic() - started:.0f} s")
        assert (dict(taken), refused) == (dict.fromkeys(local.DAG_IDS, 100), [])
        for dag_id in local.DAG_IDS:
            assert by_hand(client, dag_id) - known[dag_id] == 100
            assert states(client, dag_id)["running"] <= 1
            delete_queued(client, dag_id)
            client.cancel_unfinished(dag_id)
        assert all(now - then <= 1 for now, then in zip(made(), before, strict=True))


def by_hand(client: AirflowClient, dag_id: str) -> int:
    """How many of a DAG's runs someone triggered."""
    asked = {"run_type": "manual", "limit": "1"}
    return client._call("GET", f"dags/{dag_id}/dagRuns", params=asked)["total_entries"]


def delete_queued(client: AirflowClient, dag_id: str) -> None:
    while runs := client._call("GET", f"dags/{dag_id}/dagRuns", params={"state": "queued"})["dag_runs"]:
        entities = [{"dag_run_id": run["dag_run_id"]} for run in runs]
        deleting = {"action": "delete", "entities": entities, "action_on_non_existence": "skip"}
        client._call("PATCH", f"dags/{dag_id}/dagRuns", json={"actions": [deleting]})


def members_of(home: Path) -> list[psutil.Process]:
    """All processes of the local Airflow."""
    airflow = local.running(home)
    assert airflow is not None
    return members(airflow.pid, airflow.born, (OWNER, str(local.airflow_home(home))))


@pytest.mark.slow
def test_one_training_outlives_its_trainer_its_task_and_all_of_airflow(start, home: Path):
    """Killed by SIGKILL one after the other and cleared in between: each update is made, and kept once."""
    training = start(seed=1, **{"training.checkpoint_every": 10})

    training.trainer().kill()
    killed_at = max(training.steps())
    training.next_try(2)
    wait_for(lambda: training.steps()[-1] > killed_at, 240, "updates that were not made before")
    again = training.repeated()
    assert again <= 20  # what was done since the last checkpoint

    trainer = training.trainer()
    told = time.monotonic()
    training.clear()
    wait_for(lambda: not trainer.is_running(), 15, "the job's end")
    print(f"stopped {time.monotonic() - told:.1f} s after the task was cleared")
    training.next_try(3)

    trainer = training.trainer()
    training.task_process().kill()
    training.in_the_middle()  # goes on, though no task follows it
    training.next_try(4)
    assert trainer.is_running()

    airflow = local.running(home)
    assert airflow is not None
    spec, mine = airflow.spec, training.processes()
    for process in members_of(home):
        if process not in mine:
            with contextlib.suppress(psutil.Error):
                process.kill()
    wait_for(lambda: local.running(home) is None, 15, "the end of Airflow")
    training.in_the_middle()
    with local.start(home, spec, FREE_PORT).client() as client:
        training.client = client
        training.trained()
    steps = training.steps()
    assert sorted(set(steps)) == list(range(1, 2 * EPOCHS + 1))
    assert training.repeated() == again  # from the trainer's own kill; nothing else came twice
    assert not training.processes()


@pytest.mark.slow
def test_marking_the_task_failed_stops_the_job_within_fifteen_seconds(start):
    training = start(seed=2)
    trainer = training.trainer()
    told = time.monotonic()
    training.mark("failed")
    wait_for(lambda: not training.processes(), 15, "the job's end")
    print(f"stopped {time.monotonic() - told:.1f} s after the task was marked failed")
    assert not trainer.is_running() and not training.job.alive()
    assert training.job.exit_code() == 75  # saved
    assert training.task()["state"] == "failed"


@pytest.mark.slow
def test_marking_the_task_or_its_run_failed_between_two_tries_stops_the_job(start):
    """No task runs then that could hear of it."""
    training = start(seed=4)
    for marked, of in ((2, "/taskInstances/train"), (0, "")):
        training.task_process().kill()
        wait_for(lambda: training.task()["state"] == "up_for_retry", 120, "the end of the try")
        assert training.job.alive()
        told = time.monotonic()
        training.mark("failed", of)
        wait_for(lambda: not training.processes(), 15, "the job's end")
        print(f"stopped {time.monotonic() - told:.1f} s after {of or 'the run'} was marked failed")
        assert training.job.exit_code() == 75  # saved
        if marked:
            # Before the scheduler has seen the end of the run, it could overwrite what a clear changes.
            wait_for(training.ended, 120, "the end of the run")
            training.clear()
            training.next_try(marked)


def component(home: Path, name: str) -> psutil.Process:
    """One of the four processes of the local Airflow."""
    airflow = local.running(home)
    assert airflow is not None
    for process in psutil.Process(airflow.pid).children():
        if name in " ".join(process.cmdline()).replace("_", "-"):
            return process
    raise AssertionError(name)


def came_back(training: Training, name: str, since: datetime) -> bool:
    """Whether a component was heard of after it was killed."""
    try:
        told = training.client.health()
    except (httpx.TransportError, httpx.HTTPStatusError):
        return False
    beat = told.get(name, {}).get(f"latest_{name}_heartbeat")
    return name == "api-server" or bool(beat and datetime.fromisoformat(beat) > since)


@pytest.mark.slow
def test_scheduler_triggerer_and_api_server_killed_alone_are_started_again(start, home: Path):
    """Training goes on all the while; a later try of its task follows it, or takes what it came to."""
    training = start(seed=5)
    trainer = training.trainer()
    for name in ("scheduler", "triggerer", "api-server"):
        time.sleep(random.uniform(0, 2))  # at any moment of its work
        killed, since = component(home, name), datetime.now(UTC)
        killed.kill()
        training.in_the_middle()
        wait_for(lambda name=name, since=since: came_back(training, name, since), 90, name)
        assert component(home, name).pid != killed.pid
        print(f"{name} is back after {(datetime.now(UTC) - since).total_seconds():.1f} s")
    assert trainer.is_running() or training.job.exit_code() == 0
    training.trained()
    steps = training.steps()
    assert steps == list(range(1, 2 * EPOCHS + 1))  # each once, by the one trainer
    assert not training.processes()
    workers = [each for each in members_of(home) if "LocalExecutor" in " ".join(each.cmdline())]
    assert len(workers) == 4  # those of the killed scheduler are gone


@pytest.mark.slow
def test_a_scheduler_that_gave_itself_up_is_started_again(home: Path, tiny_project: Path):
    """As it does, in Airflow's own words, where the clock was set forward by more than a minute."""
    local.start(home, tiny_project, FREE_PORT)
    given_up = component(home, "scheduler")

    def gone() -> bool:
        # What is written from outside, its next sign of life undoes.
        with contextlib.closing(
            sqlite3.connect(local.airflow_home(home) / "airflow.db", timeout=60)
        ) as database:
            database.execute("UPDATE job SET state = 'failed' WHERE job_type = 'SchedulerJob'")
            database.commit()
        time.sleep(1)
        return not given_up.is_running()

    wait_for(gone, 120, "the end of that scheduler")
    wait_for(lambda: _last_scheduler(local.airflow_home(home))[1] == "running", 240, "another scheduler")


@pytest.mark.slow
def test_down_ends_training_saved(start, home: Path):
    training = start(seed=3)
    assert local.stop(home) is True
    assert not training.processes() and training.job.exit_code() == 75


@pytest.mark.slow
def test_one_task_trains_in_two_processes_that_end_together(
    start, home: Path, monkeypatch: pytest.MonkeyPatch
):
    """JORA_HOSTS is set: one process killed ends both, and the next try goes on; marked failed, both end."""
    local.stop(home)
    monkeypatch.setenv(HOSTS, "localhost,localhost")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    mesh = {"training.mesh.data": 2, "training.mesh.fsdp": 2}
    training = start(seed=6, **{"training.checkpoint_every": 10, **mesh})
    second = training.trainer(process=1)
    second.kill()
    training.next_try(2)
    steps = training.steps()
    assert steps.count(1) == 1  # went on, from no more than two checkpoints before
    assert len(steps) - len(set(steps)) <= 20
    log = training.client.task_log(DAG, training.run_id, "train", 1)
    assert {"[0] train", "[1] train"} < set(log)
    assert any("Process 1 on localhost was ended by SIGKILL" in line for line in log)
    assert (training.job.folder / "process-1.log").read_text().count("\ntrain\n") == 2

    told = time.monotonic()
    training.mark("failed")
    wait_for(lambda: not training.processes(), 15, "the end of all processes")
    print(f"stopped {time.monotonic() - told:.1f} s after the task was marked failed")
    assert training.job.exit_code() == 75  # saved
