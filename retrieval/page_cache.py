"""What PDF and Word files were read as before, so that a corpus costs what has changed."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from retrieval.sqlite import open_cache

_TABLES = """
CREATE TABLE IF NOT EXISTS pages (key BLOB PRIMARY KEY, title TEXT NOT NULL, text TEXT NOT NULL);
"""


class PageCache:
    """One SQLite file: digest of a file and of how it is read → title and text. Made for the first text.

    What was added is there after a kill; deleting the file costs only the time to read again.

    Raises:
      InputError: if the file is no such cache.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._opened = open_cache(file, _TABLES) if file.exists() else None

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
        self._opened = self._opened or open_cache(self._file, _TABLES)
        self._opened.execute("INSERT OR REPLACE INTO pages VALUES (?, ?, ?)", (key, title, text))
