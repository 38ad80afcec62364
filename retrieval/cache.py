"""What was made of texts before: vectors and cuts, so that a text that moved costs nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from jora_tasks.errors import InputError
from jora_tasks.tables import TableWriter
from retrieval.chunking import Cut
from retrieval.sqlite import CacheFile

_VECTORS, _CUTS, _FACTS = _TABLES = ("vectors", "cuts", "facts")
_AT_ONCE = 4096  # rows that are written or read together


def text_key(text: str) -> bytes:
    """The key of a text's vector: its SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class Cache:
    """One file for one way of embedding. Several processes may use it at a time.

    What was added is there after a kill; deleting the file costs only the time to make it again.

    Raises:
      InputError: if the file is no such cache, here and in each method.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._opened = CacheFile(file, _TABLES)

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def known(self, keys: Collection[bytes]) -> set[bytes]:
        """Those of the keys that have a vector."""
        return {key for key, _ in self._opened.get(_VECTORS, keys)}

    def vectors(self, keys: Sequence[bytes], dimension: int) -> np.ndarray:
        """The vectors of these keys, float32 [N, dimension].

        Raises:
          InputError: if one is missing or of another length: the file was altered.
        """
        found = np.empty((len(keys), dimension), np.float32)
        rows: dict[bytes, list[int]] = {}
        for row, key in enumerate(keys):
            rows.setdefault(key, []).append(row)
        for key, vector in self._opened.get(_VECTORS, list(rows)):
            if len(vector) != 4 * dimension:
                raise self._altered()
            found[rows.pop(key)] = np.frombuffer(vector, "<f4")
        if rows:
            raise self._altered()
        return found

    def add_vectors(self, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        """Keep vectors, float32 [N, D]; all of them are there once this returns."""
        made = zip(keys, vectors, strict=True)
        self._opened.add(_VECTORS, ((key, vector.astype("<f4").tobytes()) for key, vector in made))

    def cuts(self, keys: Collection[bytes]) -> dict[bytes, list[tuple[Cut, bytes]]]:
        """The cuts of those keys that have some, each with the key of its vector."""
        return {
            key: [(Cut(*cut), bytes.fromhex(vector)) for *cut, vector in json.loads(cuts)]
            for key, cuts in self._opened.get(_CUTS, keys)
        }

    def add_cuts(self, made: Mapping[bytes, Sequence[tuple[Cut, bytes]]]) -> None:
        rows = (
            (key, [[cut.start, cut.end, cut.heading, cut.n_tokens, vector.hex()] for cut, vector in cuts])
            for key, cuts in made.items()
        )
        self._opened.add(_CUTS, ((key, json.dumps(cuts).encode()) for key, cuts in rows))

    def write(
        self, file: Path, cuts: Sequence[bytes], vectors: Sequence[bytes], facts: Sequence[str]
    ) -> None:
        """Write what there is under these keys as a table, for `read` of another machine's cache."""
        import pyarrow as pa

        wanted = {_CUTS: cuts, _VECTORS: vectors, _FACTS: [name.encode() for name in facts]}
        schema = pa.schema([("table", pa.string()), ("key", pa.binary()), ("value", pa.binary())])
        with TableWriter(file, schema) as table:
            for name, keys in wanted.items():
                for part in _batches(list(dict.fromkeys(keys))):
                    for key, value in sorted(self._opened.get(name, part)):
                        table.add({"table": name, "key": key, "value": value}, len(value))

    def read(self, file: Path) -> None:
        """Add what `write` wrote."""
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(file).iter_batches(_AT_ONCE):
            rows: dict[str, list[tuple[bytes, bytes]]] = {name: [] for name in _TABLES}
            for row in batch.to_pylist():
                rows[row["table"]].append((row["key"], row["value"]))
            for name, each in rows.items():
                self._opened.add(name, each)

    def fact(self, name: str) -> str | None:
        """What is known of the embedder itself, so that it need not be opened."""
        return next((value.decode() for _, value in self._opened.get(_FACTS, [name.encode()])), None)

    def add_fact(self, name: str, value: str) -> None:
        self._opened.add(_FACTS, [(name.encode(), value.encode())])

    def _altered(self) -> InputError:
        return InputError(f"The cache {self._file} was altered while it was read; delete it and run again.")


def _batches(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(keys), _AT_ONCE):
        yield keys[start : start + _AT_ONCE]
