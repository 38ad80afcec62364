"""CSV and TSV: a header that names the columns, then a document a row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import BinaryIO

from jora_tasks.errors import InputError
from jora_tasks.spec import DocumentsConfig
from retrieval.documents import Loaded, Unreadable
from retrieval.loaders.lines import bounded_lines
from retrieval.loaders.rows import row_document, too_long

_DELIMITERS = (",", ";", "\t")


def read_delimited(stream: BinaryIO, source: str, config: DocumentsConfig) -> Iterator[Loaded]:
    """The document of each row; rows count from 1 below the header, blank ones too; empty cells are absent.

    The delimiter is that of comma, semicolon and tab by which the header names the text column.

    Raises:
      InputError: if the file is empty, the header lacks a named column, or quotes do not match up; the
        rows before have been given by then.
    """
    csv.field_size_limit(config.max_file_mib << 20)
    lines = _lines(stream, source, config)
    header = next(lines, None)
    if header is None:
        raise InputError(f"{source} is empty; give it a header and rows, or remove it.")
    number = 0
    try:
        columns, delimiter = _header(header, source, config)
        for number, cells in enumerate(csv.reader(lines, delimiter=delimiter, strict=True), start=1):
            if not cells:
                continue
            if len(cells) > len(columns):
                yield Unreadable(
                    source,
                    f"{source}:{number} has {len(cells)} cells under {len(columns)} columns; put text with "
                    "the delimiter in it into quotes.",
                )
                continue
            row = {name: cell for name, cell in zip(columns, cells, strict=False) if cell.strip()}
            if config.text_column in columns:  # an empty document is counted as such
                row.setdefault(config.text_column, "")
            yield row_document(row, source, number, config)
    except csv.Error as error:
        raise InputError(
            f"{source} cannot be read beyond row {number} ({error}); mend the quotes there."
        ) from None


def _lines(stream: BinaryIO, source: str, config: DocumentsConfig) -> Iterator[str]:
    for number, line in enumerate(bounded_lines(stream, source, config, newline=""), start=1):
        if line is None:  # whether it ends within quotes is not known
            raise too_long(f"{source} line {number}", config)
        yield line


def _header(line: str, source: str, config: DocumentsConfig) -> tuple[list[str], str]:
    found = {}
    for delimiter in _DELIMITERS:
        columns = next(csv.reader([line], delimiter=delimiter, strict=True), [])
        found[delimiter] = [column.strip() for column in columns]
    delimiter = max(found, key=lambda each: (config.text_column in found[each], len(found[each])))
    check_columns(found[delimiter], source, config)
    return found[delimiter], delimiter


def check_columns(columns: list[str], source: str, config: DocumentsConfig) -> None:
    """Refuse a table without a column that the settings name, or with two of one name that is read.

    Those of id and title may lack if they have their usual names.

    Raises:
      InputError: naming column and setting.
    """
    for column in (config.text_column, config.id_column, config.title_column, *config.metadata_columns):
        if columns.count(column) > 1:
            raise InputError(
                f"{source} has {columns.count(column)} columns {column!r}; give each its own name."
            )
    named = {"text_column": config.text_column}
    for field in ("id_column", "title_column"):
        if getattr(config, field) != DocumentsConfig.model_fields[field].default:
            named[field] = getattr(config, field)
    wanted = [*named.items(), *(("metadata_columns", column) for column in config.metadata_columns)]
    for field, column in wanted:
        if column not in columns:
            there = ", ".join(columns)[:300] or "none"
            raise InputError(
                f"{source} has no column {column!r}; name one of its columns ({there}) in documents.{field}."
            )
