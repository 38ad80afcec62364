"""Kills and stops on a real local Airflow while it trains; one start of Airflow serves all tests."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from jora_tasks.airflow import local
from jora_tasks.airflow.client import AirflowClient
from jora_tasks.airflow.environment import OWNER
from jora_tasks.airflow.job import MARK, Job, jobs
from jora_tasks.airflow.processes import marked, members
from jora_tasks.airflow.runs import job_folder, progress_file, run_folder
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.progress import Progress
from jora_tasks.spec import load_spec
from jora_tasks.stages.pipeline import run_stage

DAG = "adapter_training"
FREE_PORT = local.choose_port(None, default=8181)
EPOCHS = 1000  # of two updates each: long enough to be hit in the middle


def wait_for(condition: Callable[[], Any], seconds: float = 120, what: str = "") -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or condition}"
        time.sleep(0.2)
    return found


@dataclass
class Training:
    """One run of the training DAG, triggered by hand."""

    home: Path
    client: AirflowClient
    run_id: str
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = run_folder(self.home, DAG, self.run_id)

    @property
    def job(self) -> Job:
        return Job(job_folder(self.folder, "train"))

    def processes(self) -> list[psutil.Process]:
        return marked(MARK, str(self.job.folder))

    def trainer(self) -> psutil.Process:
        """The last of the chain: the keeper's child."""
        parents = {process.ppid() for process in self.processes()}
        return next(process for process in self.processes() if process.pid not in parents)

    def steps(self) -> list[int]:
        """The updates told of, in the order of the progress file."""
        if not progress_file(self.folder).exists():
            return []
        events = map(json.loads, progress_file(self.folder).read_text().splitlines())
        return [event["done"] for event in events if event["stage"] == "train" and event["unit"] == "steps"]

    def in_the_middle(self, after: int = 20) -> None:
        """Wait until some further updates were made."""
        seen = len(self.steps())
        wait_for(lambda: len(self.steps()) >= seen + after, 240, "updates")

    def next_try(self, number: int) -> None:
        """Wait until this try of the task follows the training."""
        wait_for(lambda: self.task()["try_number"] == number, 120, f"try {number}")
        wait_for(lambda: self.job.watcher().startswith(f"{number} "), 60, f"try {number}")
        self.in_the_middle()

    def clear(self) -> None:
        body = {"dry_run": False, "only_failed": False, "dag_run_id": self.run_id, "task_ids": ["train"]}
        self.client._call("POST", f"dags/{DAG}/clearTaskInstances", json=body)

    def task(self, task_id: str = "train") -> dict[str, Any]:
        tasks = self.client.task_instances(DAG, self.run_id)
        return next(task for task in tasks if task["task_id"] == task_id)

    def task_process(self) -> psutil.Process:
        """The process that runs the task's code; the keeper is its child until it is killed."""
        keeper = next(process for process in self.processes() if "keeper" in " ".join(process.cmdline()))
        return psutil.Process(keeper.ppid())

    def trained(self) -> dict[str, Any]:
        """What training came to; asks that each of its updates is in the metrics once."""
        wait_for(lambda: self.task()["state"] in ("success", "failed"), 300, "the end of training")
        task = self.task()
        log = self.client.task_log(DAG, self.run_id, "train", task["try_number"])
        assert task["state"] == "success", log
        result = self.client.xcom(DAG, self.run_id, "train")
        metrics = Path(result["path"], "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in metrics] == list(range(1, 2 * EPOCHS + 1))
        return result


@pytest.fixture(scope="module")
def home(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a running Airflow; contexts and prompts are made, so that runs come to training at once."""
    folder = tmp_path_factory.mktemp("survival") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AIRFLOW__OPENLINEAGE__TRANSPORT", raising=False)
        patch.setenv("JORA_HOME", str(folder))
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
def test_one_training_outlives_its_trainer_its_task_and_all_of_airflow(start, home: Path):
    """Killed by SIGKILL one after the other and cleared in between: each update is made, and kept once."""
    training = start(seed=1, **{"training.checkpoint_every": 10})

    training.trainer().kill()
    training.next_try(2)
    before_kills = len(training.steps())
    again = before_kills - len(set(training.steps()))
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
    for process in members(airflow.pid, airflow.started, (OWNER, str(local.airflow_home(home)))):
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
    assert len(steps) - len(set(steps)) == again  # from the trainer's own kill; nothing else came twice
    assert not training.processes()


@pytest.mark.slow
def test_marking_the_task_failed_stops_the_job_within_fifteen_seconds(start):
    training = start(seed=2)
    trainer = training.trainer()
    told = time.monotonic()
    training.client._call(
        "PATCH", f"dags/{DAG}/dagRuns/{training.run_id}/taskInstances/train", json={"new_state": "failed"}
    )
    wait_for(lambda: not training.processes(), 15, "the job's end")
    print(f"stopped {time.monotonic() - told:.1f} s after the task was marked failed")
    assert not trainer.is_running() and not training.job.alive()
    assert training.job.exit_code() == 75  # saved
    assert training.task()["state"] == "failed"


@pytest.mark.slow
def test_down_ends_training_saved(start, home: Path):
    training = start(seed=3)
    assert local.stop(home) is True
    assert not training.processes() and training.job.exit_code() == 75
