"""What the processes of a launch said: told on, kept in a file a process, and the last words of each."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

WORDS = "jora: "
"""What the line begins with in which `jora` says why it ends."""

_LABELLED = re.compile(r"\[(\d+)\] (.*)")


def labelled(line: str) -> tuple[int | None, str]:
    """The process whose number a line has before it, and what it said; None where it has none."""
    found = _LABELLED.fullmatch(line)
    return (int(found[1]), found[2]) if found else (None, line)


class LastWords(dict[int | None, str]):
    """By process, and by None of all, the last line that `jora` ended with, or else the last one."""

    def hear(self, line: str, process: int | None) -> None:
        for of in {process, None} if line.strip() else ():
            if line.startswith(WORDS) or not self.get(of, "").startswith(WORDS):
                self[of] = line

    def of(self, process: int | None) -> str:
        """What a process said last, as people read it."""
        return self.get(process, "").removeprefix(WORDS)


class Book:
    """Takes the lines of all processes.

    Attributes:
      last: not of what the launcher itself tells.
    """

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self.folder = folder
        self.last = LastWords()
        self._report, self._lock, self._open = report, threading.Lock(), contextlib.ExitStack()
        self._files: dict[int | None, int] = {}

    def __enter__(self) -> Book:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def add(self, line: str, process: int | None) -> None:
        """A line of a process; of that whose number it has before it, where one command starts all."""
        number, line = labelled(line)
        process = process if number is None else number
        with self._lock:
            self.last.hear(line, process)
        self.tell(line, process)

    def tell(self, line: str, process: int | None) -> None:
        with self._lock:
            os.write(self._file(process), f"{line}\n".encode())
            self._report(line if process is None else f"[{process}] {line}")

    def _file(self, process: int | None) -> int:
        if process not in self._files:
            file = self.folder / ("launcher.log" if process is None else f"process-{process}.log")
            self._files[process] = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            self._open.callback(os.close, self._files[process])
        return self._files[process]
