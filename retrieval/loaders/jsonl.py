"""JSON lines: a document a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from jora_tasks.errors import InputError
from jora_tasks.reading import parse_line
from jora_tasks.spec import DocumentsConfig
from retrieval.documents import Loaded, Unreadable
from retrieval.loaders.lines import bounded_lines
from retrieval.loaders.rows import row_document, too_long


def read_jsonl(stream: BinaryIO, source: str, config: DocumentsConfig) -> Iterator[Loaded]:
    """The document of each line; a line that is none is told of, and the next ones are read."""
    for number, line in enumerate(bounded_lines(stream, source, config), start=1):
        place = f"{source}:{number}"
        if line is None:
            yield Unreadable(source, str(too_long(place, config)))
        elif line.strip():
            try:
                row = parse_line(line, place)
            except InputError as error:
                yield Unreadable(source, str(error))
                continue
            if isinstance(row, dict):
                yield row_document(row, source, number, config)
            else:
                yield Unreadable(source, f'{place} has no text; write {{"{config.text_column}": "…"}}.')
