"""A command that outlives the task that started it, known by a folder of files.

    job.json   the command, its host and keeper, and where its part of the log begins
    lock       held by the kernel as long as the keeper or the command lives
    log        what the command prints on stderr, of every start
    result     what it prints on stdout
    exit.json  how it ended; whole or absent
    watched    names the task that follows it, which touches it; where no one does, the keeper stops it
    stop       asks the keeper to stop it

Whether a job lives is asked of the lock alone: no process id that was given out again, and no clock that was
set, can deceive. A task on another host can follow it as well, where both see the home and its locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jora_tasks.airflow.child import Outcome
from jora_tasks.airflow.environment import OWNER
from jora_tasks.airflow.processes import end, marked
from jora_tasks.writing import write_text

MARK = "JORA_JOB"
"""Environment variable of a job's processes: its folder."""

STOP_GRACE_SECONDS = 8.0
"""From SIGTERM, at which a trainer saves its state, to SIGKILL."""

_POLL_SECONDS = 0.25
_START_SECONDS = 2.0


class JobBusy(RuntimeError):
    """The job is running already."""


class TakenOver(RuntimeError):
    """Another task follows the job now."""


@dataclass(frozen=True)
class Job:
    """The job of this folder, which may never have been started."""

    folder: Path

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], cwd: Path, watcher: str = ""
    ) -> None:
        """Start the command under a keeper, in a session of its own.

        Args:
          watcher: who follows it from now on; see `follow`.

        Raises:
          JobBusy: if it is running already.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked() as descriptor:
            for name in ("exit.json", "stop", "result"):
                (self.folder / name).unlink(missing_ok=True)
            log = self.folder / "log"
            told = {
                "command": list(command),
                "cwd": str(cwd),
                "host": socket.gethostname(),
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "log_from": log.stat().st_size if log.exists() else 0,
            }
            write_text(self.folder / "job.json", json.dumps(told, indent=2) + "\n")
            write_text(self.folder / "watched", watcher)
            # A local Airflow that is cleared away after a kill must leave the job alone: not its mark.
            own = {name: value for name, value in environment.items() if name != OWNER}
            with log.open("ab") as out:
                subprocess.Popen(
                    [sys.executable, "-m", "jora_tasks.airflow.keeper", str(self.folder), str(descriptor)],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    cwd=cwd,
                    env=own | {MARK: str(self.folder)},
                    start_new_session=True,
                    pass_fds=(descriptor,),
                )

    def told(self) -> dict[str, Any]:
        """``job.json``; empty before the first start."""
        try:
            return json.loads((self.folder / "job.json").read_text())
        except (OSError, ValueError):
            return {}

    def alive(self) -> bool:
        """Whether the keeper or the command lives."""
        try:
            with (self.folder / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            pass
        return False

    def exit_code(self) -> int | None:
        """How the command ended; None while it runs, and where its keeper was killed with it."""
        try:
            return json.loads((self.folder / "exit.json").read_text())["code"]
        except (OSError, ValueError):
            return None

    def follow(
        self, watcher: str, report: Callable[[str], None], stop_waiting: Callable[[], bool]
    ) -> Outcome:
        """Pass on each line of the log of this start, from its first, until the job has ended.

        Args:
          watcher: who follows; the last one to come keeps the job alive, and alone may stop it.
          report: gets each line.
          stop_waiting: asked again and again; true ends the waiting, not the job.

        Returns:
          How it ended; code -1 where no one lived to say.

        Raises:
          TakenOver: if another watcher has come.
        """
        write_text(self.folder / "watched", watcher)
        position, last_line = self.told().get("log_from", 0), ""
        while True:
            alive = self.alive()  # asked first, so that no line written before the end is missed
            if self.watcher() != watcher:
                raise TakenOver(f"Another task follows the job in {self.folder} now.")
            os.utime(self.folder / "watched")
            lines, position = self._lines(position, whole=alive)
            for line in lines:
                last_line = line
                report(line)
            if not alive or stop_waiting():
                break
            time.sleep(_POLL_SECONDS)
        return self.outcome(last_line)

    def outcome(self, last_line: str = "") -> Outcome:
        """How the job ended, with all that it printed on stdout."""
        code = self.exit_code()
        result = self.folder / "result"
        printed = result.read_text(encoding="utf-8", errors="replace") if result.exists() else ""
        return Outcome(-1 if code is None else code, printed, last_line)

    def watcher(self) -> str:
        """Who follows the job, or followed it last."""
        try:
            return (self.folder / "watched").read_text()
        except OSError:
            return ""

    def ask_to_stop(self) -> None:
        """Have the keeper stop the command: SIGTERM, and SIGKILL after `STOP_GRACE_SECONDS`."""
        with contextlib.suppress(FileNotFoundError):  # it was never started
            (self.folder / "stop").touch()

    def stop(self, grace: float = STOP_GRACE_SECONDS + 4) -> None:
        """Stop the job and wait for it; what is left after the grace is killed.

        Raises:
          RuntimeError: if a process is left even then.
        """
        self.ask_to_stop()
        deadline = time.monotonic() + grace
        while self.alive() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        if self.alive() and (left := end(lambda: marked(MARK, str(self.folder)), 0)):
            raise RuntimeError(f"Processes of the job in {self.folder} could not be ended: {left}.")

    def _lines(self, position: int, whole: bool) -> tuple[list[str], int]:
        """Lines with text from a position on, only whole ones while more may come; the position after."""
        with (self.folder / "log").open("rb") as log:
            log.seek(position)
            data = log.read()
        if whole:
            data = data[: data.rfind(b"\n") + 1]
        texts = (line.rstrip() for line in data.decode("utf-8", "replace").split("\n"))
        return [text for text in texts if text], position + len(data)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The lock's descriptor, held; who inherits it holds it on after the block."""
        with (self.folder / "lock").open("ab") as lock:
            deadline = time.monotonic() + _START_SECONDS
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:  # a running job, or someone who asks at this moment whether it is
                    if time.monotonic() > deadline:
                        raise JobBusy(f"The job in {self.folder} is running already.") from None
                    time.sleep(0.05)
            yield lock.fileno()


def jobs(home: Path) -> list[Job]:
    """The jobs of a home that are alive."""
    found = (Job(file.parent) for file in (home / "runs").glob("*/*/jobs/*/job.json"))
    return [job for job in found if job.alive()]
