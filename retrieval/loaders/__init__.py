"""Files to documents: a module for each kind of file, and the table of them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import IO, Any, BinaryIO

from jora_tasks.errors import InputError
from jora_tasks.spec import DocumentsConfig
from retrieval.documents import Document, Loaded, Unreadable, normalise
from retrieval.headings import first_heading, shortened
from retrieval.loaders.archive import DAMAGE, archive_members, damaged
from retrieval.loaders.delimited import read_delimited
from retrieval.loaders.docx import read_docx
from retrieval.loaders.html import read_html
from retrieval.loaders.jsonl import read_jsonl
from retrieval.loaders.parquet import read_parquet
from retrieval.loaders.pdf import read_pdf
from retrieval.loaders.text import read_plain, read_text
from retrieval.page_cache import PageCache

# Of one document: stream, source and settings → title, if it has one, and text.
_PAGES: Mapping[str, Callable[[BinaryIO, str, DocumentsConfig], tuple[str, str]]] = {
    ".txt": read_plain,
    ".md": read_text,
    ".rst": read_text,
    ".html": read_html,
    ".htm": read_html,
    ".pdf": read_pdf,
    ".docx": read_docx,
}
# Of a document a row; read as a stream.
_TABLES: Mapping[str, Callable[[BinaryIO, str, DocumentsConfig], Iterator[Loaded]]] = {
    ".jsonl": read_jsonl,
    ".csv": read_delimited,
    ".tsv": read_delimited,
    ".parquet": read_parquet,
}
# Kinds that take long to read, with what their text depends on beside their bytes; raise a number with any
# change of its loader.
_COSTLY: Mapping[str, Callable[[], str]] = {
    ".pdf": lambda: f"1, pypdf {importlib.metadata.version('pypdf')}",
    ".docx": lambda: "1",
}
SUFFIXES = (*_PAGES, *_TABLES, ".zip")


def load(
    stream: Any, size: int, source: str, config: DocumentsConfig, cache: PageCache | None = None
) -> Iterator[Loaded]:
    """The documents of one file, and what stands for those that cannot be read.

    Args:
      stream: the open file, seekable.
      size: in bytes.
      source: its relative path; the suffix says what kind it is.
      cache: knows what was read before.
    """
    suffix = PurePosixPath(source).suffix.lower()
    try:
        if suffix in _PAGES:
            yield _checked((_page(stream, size, source, suffix, config, cache), source))
        elif suffix in _TABLES:
            for loaded in _TABLES[suffix](stream, source, config):
                yield _checked(loaded)
        else:
            for member in archive_members(stream, size, source, (*_PAGES, *_TABLES), config):
                if isinstance(member, Unreadable):
                    yield member
                else:
                    yield from load(*member, config, cache)
    except InputError as error:
        yield Unreadable(source, str(error))
    except OSError as error:
        yield Unreadable(source, unreadable(source, error))
    except DAMAGE as error:
        yield Unreadable(source, damaged(source, error))


def unreadable(source: str, error: OSError) -> str:
    """What to say of a file that the system does not let be read."""
    return f"{source} cannot be read ({error.strerror or error}); mend its permissions or remove it."


def _page(
    stream: IO[bytes], size: int, source: str, suffix: str, config: DocumentsConfig, cache: PageCache | None
) -> Document:
    if size > config.max_file_mib << 20:
        raise InputError(
            f"{source} has {size / 2**20:,.1f} MiB, more than documents.max_file_mib "
            f"({config.max_file_mib}); split it, or raise the bound."
        )
    title, text = _read(stream.read(), source, suffix, config, cache)
    text = normalise(text)
    title = shortened(" ".join(normalise(title).split())) or first_heading(text, suffix)
    return Document(normalise(source), source, title or normalise(PurePosixPath(source).stem), text)


def _read(
    data: bytes, source: str, suffix: str, config: DocumentsConfig, cache: PageCache | None
) -> tuple[str, str]:
    """Title and text of a file, from the cache if it is costly and was read before."""
    if cache is None or suffix not in _COSTLY:
        return _PAGES[suffix](io.BytesIO(data), source, config)
    way = json.dumps([suffix, _COSTLY[suffix](), config.max_file_mib])
    key = hashlib.sha256(hashlib.sha256(way.encode()).digest() + data).digest()
    found = cache.get(key)
    if found is None:
        found = _PAGES[suffix](io.BytesIO(data), source, config)
        cache.add(key, *found)
    return found


def _checked(loaded: Loaded) -> Loaded:
    """Refuse what no later stage could keep: zero characters, halves of surrogate pairs."""
    if isinstance(loaded, Unreadable):
        return loaded
    document, place = loaded
    words = (document.id, document.title, document.text, *document.metadata, *document.metadata.values())
    if any("\0" in each for each in words):
        return Unreadable(document.source, f"{place} has a zero character; write its text without.")
    try:
        for each in words:
            each.encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        return Unreadable(
            document.source, f"{place} has half of a surrogate pair, {half}; write the whole character."
        )
    return loaded
