"""Plain text, Markdown and reStructuredText."""

from __future__ import annotations

from typing import BinaryIO

from jora_tasks.spec import DocumentsConfig
from retrieval.documents import normalise
from retrieval.loaders.encoding import decode

_LONGEST_TITLE_LINE = 100


def read_text(stream: BinaryIO, source: str, config: DocumentsConfig) -> tuple[str, str]:
    """No title of its own, and the text as it is."""
    return "", decode(stream, source, config)


def read_plain(stream: BinaryIO, source: str, config: DocumentsConfig) -> tuple[str, str]:
    """The first line as title, if it is short, and the text as it is."""
    text = normalise(decode(stream, source, config))
    return first_line(text), text


def first_line(text: str) -> str:
    """The first line that is not blank, or nothing if it is too long for a title."""
    line = text.lstrip().partition("\n")[0].strip()
    return line if len(line) <= _LONGEST_TITLE_LINE else ""
