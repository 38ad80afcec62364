"""A row of a table as a document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jora_tasks.errors import InputError
from jora_tasks.spec import DocumentsConfig
from retrieval.documents import Document, Loaded, Unreadable, normalise
from retrieval.headings import shortened


def row_document(row: Mapping[str, Any], source: str, number: int, config: DocumentsConfig) -> Loaded:
    """The document that a row's named columns make.

    Args:
      row: column → value; absent and None are the same.
      source: relative path of the table.
      number: of the row or line, from 1; part of the id of a row that has none of its own.
    """
    place = f"{source}:{number}"
    try:
        text = row.get(config.text_column)
        if not isinstance(text, str):
            raise InputError(
                f"{place} has no text: {config.text_column!r} must hold it; name the column that does "
                "in documents.text_column."
            )
        if len(text) > config.max_file_mib << 20:
            raise too_long(place, config)
        id_ = normalise(_name(row, config.id_column, place) or place)
        title = shortened(normalise(_name(row, config.title_column, place) or id_))
        return Document(id_, source, title, normalise(text), _metadata(row, place, config)), place
    except InputError as error:
        return Unreadable(source, str(error))


def too_long(place: str, config: DocumentsConfig) -> InputError:
    """What to say of a row beyond the bound."""
    return InputError(
        f"{place} is longer than documents.max_file_mib ({config.max_file_mib}); split it into several "
        "documents, or raise the bound."
    )


def _name(row: Mapping[str, Any], column: str, place: str) -> str | None:
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    raise InputError(f"{place}: {column} must be text that is not empty, or left out.")


def _metadata(row: Mapping[str, Any], place: str, config: DocumentsConfig) -> dict[str, str]:
    """The named columns, and what a JSON row has under ``metadata``."""
    found = {column: row.get(column) for column in config.metadata_columns}
    given = row.get("metadata")
    if isinstance(given, Mapping):
        found = {**given, **found}
    elif given is not None and "metadata" not in config.metadata_columns:
        raise InputError(f'{place}: metadata must be a mapping, as in {{"year": "2024"}}.')
    for name, value in found.items():
        if isinstance(value, list | dict | bytes):
            raise InputError(f"{place}: metadata {name!r} must be text, a number or true or false.")
    return {name: _as_text(value) for name, value in found.items() if value is not None}


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"  # as JSON writes them
    return normalise(str(value))
