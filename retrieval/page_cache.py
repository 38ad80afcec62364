"""What PDF and Word files were read as before, so that a corpus costs what has changed."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import TracebackType

from jora_tasks.errors import InputError

_WAIT_SECONDS = 120.0  # for another process's transaction


class PageCache:
    """One SQLite file: digest of a file and of how it is read → title and text. Made for the first text.

    What was added is there after a kill; deleting the file costs only the time to read again.

    Raises:
      InputError: if the file is no such cache.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._opened = self._open() if file.exists() else None

    def __enter__(self) -> PageCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened:
            self._opened.close()

    def get(self, key: bytes) -> tuple[str, str] | None:
        """Title and text, if they are known."""
        if self._opened is None:
            return None
        found = self._opened.execute("SELECT title, text FROM pages WHERE key = ?", (key,)).fetchone()
        return tuple(found) if found else None

    def add(self, key: bytes, title: str, text: str) -> None:
        self._opened = self._opened or self._open()
        self._opened.execute("INSERT OR REPLACE INTO pages VALUES (?, ?, ?)", (key, title, text))

    def _open(self) -> sqlite3.Connection:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._file, timeout=_WAIT_SECONDS, isolation_level=None)
        try:
            # A write-ahead log: no page waits for the disk.
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS pages "
                "(key BLOB PRIMARY KEY, title TEXT NOT NULL, text TEXT NOT NULL)"
            )
        except sqlite3.DatabaseError as error:
            connection.close()
            raise InputError(
                f"The cache {self._file} cannot be read ({error}); delete it and run again."
            ) from None
        return connection
