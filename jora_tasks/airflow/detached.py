"""A stage whose work outlives its task: training, above all.

The command runs as a `Job`. A task that was killed, with its worker or the whole of Airflow, leaves it
running; the next try takes it up where it is, or takes its result. Told to stop, the task stops the job.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context, ResumableJobMixin
from airflow.sdk.exceptions import AirflowException

from jora_tasks.airflow.child import Outcome
from jora_tasks.airflow.failures import StageFailed
from jora_tasks.airflow.job import Job, JobBusy, TakenOver
from jora_tasks.airflow.keeper import unwatched_seconds
from jora_tasks.airflow.operators import Call, StageOperator
from jora_tasks.airflow.runs import job_folder
from jora_tasks.launching.launcher import LOGS

if TYPE_CHECKING:
    from pydantic import JsonValue

# Airflow sends SIGKILL 5 s after SIGTERM. What then is left, the job's keeper ends.
PATIENCE_SECONDS = 3.5


class DetachedStageOperator(ResumableJobMixin, StageOperator):
    """`StageOperator` with its command in a detached job; arguments, result and errors are the same.

    A try that finds the job of an earlier one follows it from the first line of its log. The job's folder is
    that of the DAG run and the task, so there is one job however many tries there are.
    """

    external_id_key = "job"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._call: Call | None = None
        self._job: Job | None = None
        self._watcher = ""
        self._told_to_stop_at = 0.0
        self._followed: Outcome | None = None

    def _run(self, call: Call, context: Context) -> Outcome:
        self._call, self._followed = call, None
        task = context["ti"]
        self._watcher = f"{task.try_number} {task.id}"
        self._job = Job(
            job_folder(call.folder, task.task_id, -1 if task.map_index is None else task.map_index)
        )
        try:
            outcome = self.execute_resumable(context)
        except BaseException:  # a timeout, say: no one would watch the job
            self.on_kill()
            raise
        # A task that is cleared later must ask anew: what it made may be gone by then.
        if (store := context.get("task_state_store")) is not None:
            store.delete(self.external_id_key)
        return outcome

    def submit_job(self, context: Context) -> JsonValue:
        assert self._call and self._job  # noqa: S101 set by _run
        call = self._call
        unwatched_seconds()  # refused here, where it is told; the keeper has only its log
        try:
            environment = {**call.environment, LOGS: str(self._job.folder)}
            self._job.start(call.command, environment, call.folder, self._watcher)
        except JobBusy:  # of a try that was killed before it could say that it started it
            self.log.info("The job of an earlier try is running; this one follows it.")
        return str(self._job.folder)

    def get_job_status(self, external_id: JsonValue, context: Context) -> str:
        job = Job(self._job.folder) if self._job else None
        if job is None or str(job.folder) != external_id:
            return "unknown"
        if job.alive():
            return "running"
        return {0: "succeeded", None: "killed"}.get(job.exit_code(), "failed")

    def is_job_active(self, status: str) -> bool:
        return status == "running"

    def is_job_succeeded(self, status: str) -> bool:
        return status == "succeeded"

    def poll_until_complete(self, external_id: JsonValue, context: Context) -> Outcome:  # type: ignore[override]
        assert self._job  # noqa: S101 set by _run
        try:
            outcome = self._job.follow(self._watcher, lambda line: self.log.info("%s", line), self._gives_up)
        except TakenOver as error:
            raise AirflowException(str(error)) from None
        if outcome.code == -1 and not self._cancelled:
            raise StageFailed(
                f"The job of stage {self.stage} was killed; the next try goes on from its state."
            )
        self._followed = outcome
        return outcome

    def get_job_result(self, external_id: JsonValue, context: Context) -> Outcome:
        assert self._job  # noqa: S101 set by _run
        return self._followed or self._job.outcome()  # the one followed has the last line of its log

    def on_kill(self) -> None:
        """Stop the job, unless a later try follows it already."""
        self._cancelled = True
        self._told_to_stop_at = self._told_to_stop_at or time.monotonic()
        if self._job is not None and self._job.watcher() == self._watcher:
            self._job.ask_to_stop()

    def _gives_up(self) -> bool:
        if not self._cancelled:
            return False
        self.on_kill()  # again: the job may have been about to start when the task was told
        return time.monotonic() - self._told_to_stop_at > PATIENCE_SECONDS
