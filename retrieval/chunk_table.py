"""``chunks.parquet``: written as a stream, read a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

from jora_tasks.tables import TableWriter
from retrieval.chunking import Chunk

ROWS_AT_ONCE = 256  # of a row group: what reading one chunk reads
_GROUPS_KEPT = 256


def chunk_schema() -> Any:
    """Columns of ``chunks.parquet``."""
    import pyarrow as pa

    return pa.schema(
        [
            ("chunk_id", pa.string()),
            ("document_id", pa.string()),
            ("start", pa.int64()),
            ("end", pa.int64()),
            ("heading", pa.string()),
            ("text", pa.string()),
            ("n_tokens", pa.int32()),
            ("metadata", pa.map_(pa.string(), pa.string())),
        ]
    )


def write_chunks(file: Path, chunks: Iterable[Chunk]) -> None:
    """Write chunks in the order they come, `ROWS_AT_ONCE` in memory."""
    with TableWriter(file, chunk_schema(), ROWS_AT_ONCE) as table:
        for chunk in chunks:
            row = {**vars(chunk), "metadata": sorted(chunk.metadata.items())}
            table.add({"chunk_id": row.pop("id"), **row})


class ChunkTable(Sequence[Chunk]):
    """The chunks of an index, read from the file as they are asked for; row i is that of vector i."""

    def __init__(self, file: Path) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(file, memory_map=True)
        metadata = self._file.metadata
        self._starts = [0]
        for group in range(metadata.num_row_groups):
            self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)
        self._group = lru_cache(maxsize=_GROUPS_KEPT)(self._file.read_row_group)

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, row: int) -> Chunk: ...
    @overload
    def __getitem__(self, row: slice) -> list[Chunk]: ...
    def __getitem__(self, row: int | slice) -> Chunk | list[Chunk]:
        if isinstance(row, slice):
            return self.take(range(*row.indices(len(self))))
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        return self.take([row % len(self)])[0]

    def __iter__(self) -> Iterator[Chunk]:
        for batch in self._file.iter_batches(ROWS_AT_ONCE):
            yield from map(_chunk, batch.to_pylist())

    def take(self, rows: Sequence[int]) -> list[Chunk]:
        """The chunks of these rows, in the order asked; each part of the file is read once."""
        from bisect import bisect_right

        wanted: dict[int, list[int]] = {}
        for row in sorted({int(row) for row in rows}):
            wanted.setdefault(bisect_right(self._starts, row) - 1, []).append(row)
        found: dict[int, Chunk] = {}
        for group, members in wanted.items():
            first = self._starts[group]
            part = self._group(group).take([row - first for row in members]).to_pylist()
            found.update(zip(members, map(_chunk, part), strict=True))
        return [found[int(row)] for row in rows]

    def columns(self, *names: str) -> dict[str, list[Any]]:
        """Whole columns, without reading the others."""
        return self._file.read(columns=list(names)).to_pydict()


def _chunk(row: Mapping[str, Any]) -> Chunk:
    values = dict(row)
    return Chunk(id=values.pop("chunk_id"), **{**values, "metadata": dict(values["metadata"])})
