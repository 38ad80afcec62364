"""SQLite files that several processes may use at a time, and a kill leaves whole."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from jora_tasks.errors import InputError

_WAIT_SECONDS = 120.0  # for another process's transaction


def open_cache(file: Path, tables: str) -> sqlite3.Connection:
    """Open a cache, made with these tables (SQL) if it is not there; each statement commits itself.

    Raises:
      InputError: if the file is no such cache.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(file, timeout=_WAIT_SECONDS, isolation_level=None)
    try:
        # A write-ahead log: readers never wait, and nothing added waits for the disk.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.executescript(tables)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise InputError(f"The cache {file} cannot be read ({error}); delete it and run again.") from None
    return connection
