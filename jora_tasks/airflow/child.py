"""Runs a command beside the task: output line by line, its own process group, ended on request."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Airflow sends SIGKILL 5 s after SIGTERM; what is left of the group must be gone by then.
GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
      code: exit code; negative for a signal.
      stdout: all it printed there.
      last_line: the last line with text that it printed on stderr.
    """

    code: int
    stdout: str
    last_line: str


class Child:
    """One command in a process group of its own, that ends when this process does."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        leash = [sys.executable, "-m", "jora_tasks.leash", str(os.getpid())]
        self._process = subprocess.Popen(
            [*leash, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=dict(environment),
            cwd=folder,
            process_group=0,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, report: Callable[[str], None]) -> Outcome:
        """Pass each line of stderr on as it comes, until the command ends."""
        assert self._process.stdout and self._process.stderr  # noqa: S101 both are pipes
        printed: list[str] = []
        # A second thread empties stdout: a full pipe would stop the command.
        reader = threading.Thread(target=lambda out: printed.append(out.read()), args=(self._process.stdout,))
        reader.start()
        last_line = ""
        for line in self._process.stderr:
            if text := line.rstrip():
                last_line = text
                report(text)
        reader.join()
        return Outcome(self._process.wait(), "".join(printed), last_line)

    def end(self, grace: float = GRACE_SECONDS) -> None:
        """SIGTERM to the group, and SIGKILL to what is left of it after the grace."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline:
            self._process.poll()  # reaps the leader, without which its group never looks empty
            if not self._signal(0):
                return
            time.sleep(0.05)
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> bool:
        """Whether there was someone in the group to signal."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True
