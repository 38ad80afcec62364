"""Parquet: a document a row, a few rows at a time in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from jora_tasks.errors import InputError
from jora_tasks.spec import DocumentsConfig
from retrieval.documents import Loaded
from retrieval.loaders.delimited import check_columns
from retrieval.loaders.rows import row_document

_ROWS = 64


def read_parquet(stream: BinaryIO, source: str, config: DocumentsConfig) -> Iterator[Loaded]:
    """The document of each row, counted from 1; only the named columns are read.

    Raises:
      InputError: for a file that is damaged or lacks a named column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
        columns = file.schema_arrow.names
        check_columns(columns, source, config)
        wanted = (config.text_column, config.id_column, config.title_column, *config.metadata_columns)
        number = 0
        for batch in file.iter_batches(_ROWS, columns=[name for name in columns if name in wanted]):
            for row in batch.to_pylist():
                number += 1
                yield row_document(row, source, number, config)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(". ")
        raise InputError(f"{source} is not Parquet that can be read ({reason}); write it again.") from None
