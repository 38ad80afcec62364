"""What a document is, and what stands for one that could not be read."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
      id: relative path with forward slashes, or the id that a row of a table gives; NFC-normalised, as
        questions name it, whichever form the file system keeps.
      source: relative path of the file it is from; one in an archive has the archive's before its own.
      title: its first heading, its HTML or PDF title, its row's title, or the file's name;
        at most 200 characters of it.
      text: NFC-normalised, lines ended by a newline alone.
      metadata: further facts of it by name, as text.
    """

    id: str
    source: str
    title: str
    text: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Unreadable:
    """A file or row that gave no document.

    Attributes:
      source: relative path of the file.
      reason: one sentence that names the place and the remedy.
    """

    source: str
    reason: str


Loaded = tuple[Document, str] | Unreadable
"""A document with the place to name in an error, or what stands for it."""


def normalise(text: str) -> str:
    """NFC text without a byte-order mark, its lines ended by ``\\n``."""
    return unicodedata.normalize("NFC", text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"))


def document_digest(document: Document) -> str:
    """``sha256:<hex>`` of all that later stages read: title, text, metadata and the kind of its file.

    The kind decides which lines are headings.
    """
    kind = PurePosixPath(document.source).suffix.lower()
    content = [kind, document.title, document.text, sorted(document.metadata.items())]
    return f"sha256:{hashlib.sha256(json.dumps(content).encode()).hexdigest()}"
