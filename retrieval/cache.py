"""What was made of texts before: vectors and cuts, so that a text that moved costs nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from jora_tasks.errors import InputError
from retrieval.chunking import Cut
from retrieval.sqlite import open_cache

T = TypeVar("T")

_AT_ONCE = 500  # keys in one query

_TABLES = """
CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS cuts (key BLOB PRIMARY KEY, cuts TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


def text_key(text: str) -> bytes:
    """The key of a text's vector: its SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class Cache:
    """One SQLite file for one way of embedding. Several processes may use it at a time.

    What was added is there after a kill; deleting the file costs only the time to make it again.

    Raises:
      InputError: if the file is no such cache.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._connection = open_cache(file, _TABLES)

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def known(self, keys: Collection[bytes]) -> set[bytes]:
        """Those of the keys that have a vector."""
        return {key for part in parts(keys, _AT_ONCE) for (key,) in self._select("key", "vectors", part)}

    def vectors(self, keys: Sequence[bytes], dimension: int) -> np.ndarray:
        """The vectors of these keys, float32 [N, dimension].

        Raises:
          InputError: if one is missing or of another length: the file was altered.
        """
        found = np.empty((len(keys), dimension), np.float32)
        rows: dict[bytes, list[int]] = {}
        for row, key in enumerate(keys):
            rows.setdefault(key, []).append(row)
        for part in parts(list(rows), _AT_ONCE):
            for key, vector in self._select("key, vector", "vectors", part):
                if len(vector) != 4 * dimension:
                    raise self._altered()
                found[rows.pop(key)] = np.frombuffer(vector, "<f4")
        if rows:
            raise self._altered()
        return found

    def add_vectors(self, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        """Keep vectors, float32 [N, D]; all of them are there once this returns."""
        rows = [(key, vector.astype("<f4").tobytes()) for key, vector in zip(keys, vectors, strict=True)]
        self._insert("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)

    def cuts(self, keys: Collection[bytes]) -> dict[bytes, list[tuple[Cut, bytes]]]:
        """The cuts of those keys that have some, each with the key of its vector."""
        return {
            key: [(Cut(*cut), bytes.fromhex(vector)) for *cut, vector in json.loads(cuts)]
            for part in parts(keys, _AT_ONCE)
            for key, cuts in self._select("key, cuts", "cuts", part)
        }

    def add_cuts(self, made: Mapping[bytes, Sequence[tuple[Cut, bytes]]]) -> None:
        rows = [
            (key, json.dumps([[c.start, c.end, c.heading, c.n_tokens, vector.hex()] for c, vector in cuts]))
            for key, cuts in made.items()
        ]
        self._insert("INSERT OR IGNORE INTO cuts VALUES (?, ?)", rows)

    def fact(self, name: str) -> str | None:
        """What is known of the embedder itself, so that it need not be opened."""
        row = self._connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def add_fact(self, name: str, value: str) -> None:
        self._insert("INSERT OR REPLACE INTO facts VALUES (?, ?)", [(name, value)])

    def _select(self, columns: str, table: str, keys: Sequence[bytes]) -> Iterable[tuple]:
        marks = ",".join("?" * len(keys))
        return self._connection.execute(
            f"SELECT {columns} FROM {table} WHERE key IN ({marks})",  # noqa: S608 names are ours
            keys,
        )

    def _insert(self, statement: str, rows: Sequence[tuple]) -> None:
        if rows:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(statement, rows)
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _altered(self) -> InputError:
        return InputError(f"The cache {self._file} was altered while it was read; delete it and run again.")


def parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of so many; the last may be shorter."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part
