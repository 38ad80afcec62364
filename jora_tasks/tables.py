"""Parquet tables written row by row, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

_ROWS, _BYTES = 4096, 8 << 20


class TableWriter:
    """A Parquet file that rows are added to; a row group is written as soon as it is large enough.

    Use it in a ``with``: the file is a table once the block has ended.
    """

    def __init__(self, path: Path, schema: Any, group: int = _ROWS) -> None:
        """Begin a table.

        Args:
          path: of the file.
          schema: of its columns, pyarrow's.
          group: most rows of a row group.
        """
        import pyarrow.parquet as pq

        self._schema, self._group = schema, group
        self._writer = pq.ParquetWriter(path, schema)
        self._rows: list[Mapping[str, Any]] = []
        self._bytes = 0

    def add(self, row: Mapping[str, Any], size: int = 0) -> None:
        """Add a row.

        Args:
          row: column → value.
          size: about how many bytes it holds, so that long rows are not piled up.
        """
        self._rows.append(row)
        self._bytes += size
        if len(self._rows) >= self._group or self._bytes >= _BYTES:
            self._flush()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._flush()
        finally:
            self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._bytes = [], 0
