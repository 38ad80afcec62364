"""One run of the training DAG on a local Airflow, as tests see it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from jora_tasks.airflow.client import AirflowClient
from jora_tasks.airflow.job import MARK, Job
from jora_tasks.airflow.processes import marked
from jora_tasks.airflow.runs import job_folder, progress_file, run_folder
from jora_tasks.trainer.group import PROCESS

DAG = "adapter_training"
EPOCHS = 1000  # of two updates each: long enough to be hit in the middle


def wait_for(condition: Callable[[], Any], seconds: float = 120, what: str = "") -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or condition}"
        time.sleep(0.2)
    return found


@dataclass
class Training:
    """One run of the training DAG, triggered by hand with so many epochs."""

    home: Path
    client: AirflowClient
    run_id: str
    epochs: int = EPOCHS
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = run_folder(self.home, DAG, self.run_id)

    @property
    def job(self) -> Job:
        return Job(job_folder(self.folder, "train"))

    def processes(self) -> list[psutil.Process]:
        return marked(MARK, str(self.job.folder))

    def trainer(self, process: int | None = None) -> psutil.Process:
        """The keeper's last descendant, or of several launched processes the one of this number."""
        found = self.processes()
        parents = {each.ppid() for each in found}
        numbered = [each for each in found if process is None or each.environ().get(PROCESS) == str(process)]
        return next(each for each in numbered if each.pid not in parents)

    def steps(self) -> list[int]:
        """The updates told of, in the order of the progress file."""
        if not progress_file(self.folder).exists():
            return []
        events = map(json.loads, progress_file(self.folder).read_text().splitlines())
        return [event["done"] for event in events if event["stage"] == "train" and event["unit"] == "steps"]

    def repeated(self) -> int:
        """How many updates were made more than once."""
        steps = self.steps()
        return len(steps) - len(set(steps))

    def in_the_middle(self, after: int = 20) -> None:
        """Wait until some further updates were made."""
        seen = len(self.steps())
        wait_for(lambda: len(self.steps()) >= seen + after, 240, "updates")

    def next_try(self, number: int) -> None:
        """Wait until this try of the task follows the training."""
        wait_for(lambda: self.task()["try_number"] == number, 300, f"try {number}")
        wait_for(lambda: self.job.watcher().startswith(f"{number} "), 60, f"try {number}")
        self.in_the_middle()

    def clear(self) -> None:
        body = {"dry_run": False, "only_failed": False, "dag_run_id": self.run_id, "task_ids": ["train"]}
        self.client._call("POST", f"dags/{DAG}/clearTaskInstances", json=body)

    def mark(self, state: str, of: str = "/taskInstances/train") -> None:
        """What someone does in the pages, to the task or, with an empty ``of``, the run."""
        field_ = "new_state" if of else "state"
        self.client._call("PATCH", f"dags/{DAG}/dagRuns/{self.run_id}{of}", json={field_: state})

    def task(self, task_id: str = "train") -> dict[str, Any]:
        tasks = self.client.task_instances(DAG, self.run_id)
        return next(task for task in tasks if task["task_id"] == task_id)

    def ended(self) -> bool:
        return bool(self.client.dag_run(DAG, self.run_id)["state"] == "failed")

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
        assert [json.loads(line)["step"] for line in metrics] == list(range(1, 2 * self.epochs + 1))
        return result
