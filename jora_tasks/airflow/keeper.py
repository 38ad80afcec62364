"""Keeps a detached job: ``python -m jora_tasks.airflow.keeper FOLDER DESCRIPTOR``; see `job`.

It starts the command, stops it when asked or when no one watches it any more, and writes down how it ended.
The command inherits the descriptor of the job's lock, so the job counts as alive until both are gone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from jora_tasks.airflow.job import STOP_GRACE_SECONDS, Job
from jora_tasks.airflow.processes import signal_group
from jora_tasks.variables import number_of
from jora_tasks.writing import write_text

UNWATCHED = "JORA_UNWATCHED_SECONDS"
"""How long a job goes on without a task that follows it, by default 15 minutes."""

_DEFAULT_UNWATCHED = 900.0
_POLL_SECONDS = 0.2


class _Watch:
    """How long ago the file of the watching task was touched, whatever the wall clock does."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._touched, self._since = 0, time.monotonic()

    def seconds(self) -> float:
        try:
            touched = self._file.stat().st_mtime_ns
        except OSError:
            touched = self._touched
        if touched != self._touched:
            self._touched, self._since = touched, time.monotonic()
        return time.monotonic() - self._since


def unwatched_seconds() -> float:
    """What `UNWATCHED` says."""
    return number_of(UNWATCHED, _DEFAULT_UNWATCHED)


def main() -> None:
    """Run the command of the job's ``job.json`` to its end."""
    job, descriptor = Job(Path(sys.argv[1])), int(sys.argv[2])
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: asked.append(number))
    command, patience = job.told()["command"], unwatched_seconds()
    with (job.folder / "result").open("wb") as result:
        # The leash: a keeper killed by SIGKILL cannot stop the command any more.
        child = subprocess.Popen(
            [sys.executable, "-m", "jora_tasks.leash", str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=result,
            process_group=0,
            pass_fds=(descriptor,),
        )
    watch = _Watch(job.folder / "watched")
    reason, deadline = "", 0.0
    while child.poll() is None:
        if reason:
            if time.monotonic() > deadline:
                signal_group(child.pid, signal.SIGKILL)
        elif reason := _reason(job, asked, watch.seconds() > patience, patience):
            print(f"stopping: {reason}", file=sys.stderr, flush=True)  # noqa: T201
            deadline = time.monotonic() + STOP_GRACE_SECONDS
            signal_group(child.pid, signal.SIGTERM)
        time.sleep(_POLL_SECONDS)
    signal_group(child.pid, signal.SIGKILL)  # what the command left behind in its group
    write_text(job.folder / "exit.json", json.dumps({"code": child.returncode, "stopped": reason}) + "\n")


def _reason(job: Job, asked: list[int], unwatched: bool, patience: float) -> str:
    """Why to stop, or nothing."""
    if (job.folder / "stop").exists():
        return "the task was told to stop"
    if asked:
        return f"{signal.Signals(asked[0]).name} came"
    if unwatched:
        return (
            f"no task has followed this job for {patience:.0f} s; the next try goes on from its saved state"
        )
    return ""


if __name__ == "__main__":
    main()
