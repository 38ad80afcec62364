"""Caches of bytes by key in SQLite: several processes may use one at a time, and a kill leaves it whole."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jora_tasks.errors import InputError, RunStopped, no_room

_FORMAT = 1  # raised when rows are kept in another way; a file of another format is made anew
_WAIT_SECONDS = 120.0  # for another process's transaction
_AT_ONCE = 500  # keys in one query


class CacheFile:
    """Tables of values by key. What was added is there after a kill.

    A row that is not what was written, which a digest beside it tells, counts as absent.

    Args:
      file: made if absent.
      tables: their names.

    Raises:
      InputError: here and in each method, if the file is no such cache or is damaged.
    """

    def __init__(self, file: Path, tables: Sequence[str]) -> None:
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._damage_told():
            self._connection = sqlite3.connect(file, timeout=_WAIT_SECONDS, isolation_level=None)
        try:
            with self._damage_told():
                # A write-ahead log: readers never wait, and nothing added waits for the disk.
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=NORMAL")
                self._make(tables)
        except BaseException:
            self.close()
            raise

    def get(self, table: str, keys: Collection[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Those of the keys that have a value, with it, in any order."""
        wanted = list(keys)
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            marks = ",".join("?" * len(part))
            with self._damage_told():
                rows = self._connection.execute(
                    f"SELECT key, value, digest FROM {table} WHERE key IN ({marks})",  # noqa: S608 names are ours
                    part,
                ).fetchall()
            whole = [(key, value) for key, value, digest in rows if _digest(key, value) == digest]
            if len(whole) < len(rows):
                damaged = [row for row in rows if _digest(*row[:2]) != row[2]]
                # unless another process has mended it meanwhile
                self._write(f"DELETE FROM {table} WHERE key = ? AND value IS ? AND digest IS ?", damaged)  # noqa: S608
            yield from whole

    def add(self, table: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep values by key; all of them are there once this returns. Of two for a key the first stays."""
        self._write(
            f"INSERT OR IGNORE INTO {table} VALUES (?, ?, ?)",  # noqa: S608
            [(key, value, _digest(key, value)) for key, value in rows],
        )

    def close(self) -> None:
        self._connection.close()

    def _make(self, tables: Sequence[str]) -> None:
        if self._connection.execute("PRAGMA user_version").fetchone()[0] == _FORMAT:
            return
        with self._transaction():
            if self._connection.execute("PRAGMA user_version").fetchone()[0] == _FORMAT:
                return  # another process has made it meanwhile
            old = self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (name,) in old:
                self._connection.execute(f'DROP TABLE "{name}"')
            for name in tables:
                self._connection.execute(
                    f"CREATE TABLE {name} (key BLOB PRIMARY KEY, value BLOB NOT NULL, digest BLOB NOT NULL)"
                )
            self._connection.execute(f"PRAGMA user_version = {_FORMAT}")

    def _write(self, statement: str, rows: Sequence[tuple]) -> None:
        if rows:
            with self._damage_told(), self._transaction():
                self._connection.executemany(statement, rows)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:  # SQLite ends it by itself after some errors
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    @contextlib.contextmanager
    def _damage_told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if no_room(error):
                raise
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                raise RunStopped(
                    f"The cache {self._file} was in use by another process for {_WAIT_SECONDS:.0f} s; run "
                    "this again when that has ended."
                ) from None
            raise InputError(
                f"The cache {self._file} cannot be read ({error}); delete it and run again."
            ) from None


def _digest(key: bytes, value: Any) -> bytes | None:
    """Of a row as it was written; None where damage made its value another type."""
    return hashlib.blake2b(key + value, digest_size=8).digest() if isinstance(value, bytes) else None
