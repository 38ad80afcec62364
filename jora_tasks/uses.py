"""Which artifacts of a home processes read or make, and when each was asked for last.

    locks/<kind>-<key>.use     held shared by each process that reads or makes this artifact; its time of
                               change is when that was asked for last

The locks are the kernel's, so they end with their holders, however those die.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


class Uses:
    """The uses of a home's artifacts, this object's own among them."""

    def __init__(self, home: Path) -> None:
        self._locks = home / "locks"
        self._held: dict[Path, IO[bytes]] = {}

    def use(self, kind: str, key: str) -> IO[bytes]:
        """Keep an artifact from being removed as long as this object or what is returned lives."""
        file = self._file(kind, key)
        if file not in self._held:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = file.open("ab")
            fcntl.flock(lock, fcntl.LOCK_SH)
            self._held[file] = lock
        os.utime(file)
        return self._held[file]

    @contextlib.contextmanager
    def alone(self, kind: str, key: str) -> Iterator[bool]:
        """Whether no one uses an artifact; then no one begins to as long as the block lasts."""
        file = self._file(kind, key)
        new = self.last(kind, key) is None
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            if new:  # this is no use
                os.utime(file, (0, 0))
            yield True

    def used(self, kind: str, key: str) -> bool:
        """Whether someone uses an artifact."""
        if self.last(kind, key) is None:
            return False
        with self.alone(kind, key) as free:
            return not free

    def last(self, kind: str, key: str) -> float | None:
        """When an artifact was asked for last, in seconds since 1970; None if it never was."""
        try:
            return self._file(kind, key).stat().st_mtime
        except FileNotFoundError:
            return None

    def _file(self, kind: str, key: str) -> Path:
        return self._locks / f"{kind}-{key}.use"
