"""Documents from a folder, normalised, with ids that stay the same from run to run."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jora_tasks.errors import InputError
from jora_tasks.reading import parse_lines, read_text, unreadable_refused
from retrieval.headings import first_heading
from retrieval.html import html_text

SUFFIXES = (".txt", ".md", ".rst", ".html", ".htm", ".jsonl")
_LONGEST_TITLE_LINE = 100


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
      id: relative path with forward slashes, or the id that a JSONL row gives.
      source: relative path of the file it is from.
      title: its first heading, its HTML or JSONL title, or the file's name.
      text: NFC-normalised, lines ended by a newline alone.
      metadata: further facts of it by name, as text.
    """

    id: str
    source: str
    title: str
    text: str
    metadata: Mapping[str, str] = field(default_factory=dict)


def normalise(text: str) -> str:
    """NFC text without a byte-order mark, its lines ended by ``\\n``."""
    return unicodedata.normalize("NFC", text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"))


def document_files(folder: Path) -> list[Path]:
    """The files that `load_documents` reads, sorted by relative path.

    Hidden files and folders, and files of other kinds, are left out. A folder that is reached twice
    by symbolic links is read once.

    Raises:
      InputError: if the folder is missing or holds no such file, if it or a folder in it cannot be
        read, or a file's name is not UTF-8.
    """
    with unreadable_refused(f"documents.path {folder}"):
        files = _walk(folder)
    if not files:
        raise InputError(
            f"documents.path {folder} holds no document; put {', '.join(SUFFIXES[:-1])} "
            f"or {SUFFIXES[-1]} files there."
        )
    for file in files:
        try:
            str(file.relative_to(folder)).encode()
        except UnicodeEncodeError:
            raise InputError(
                f"documents.path {folder}: the path {str(file.relative_to(folder))!a} is not UTF-8; "
                "rename the file or its folder."
            ) from None
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix())


def _walk(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"documents.path {folder} is not a folder; give the folder of your documents.")
    files: list[Path] = []
    seen: set[str] = set()
    for path, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = (Path(path, name) for name in names if not name.startswith("."))
        files += [file for file in visible if file.suffix.lower() in SUFFIXES and file.is_file()]
    return files


def _raise(error: OSError) -> None:
    raise error


def load_documents(folder: Path) -> list[Document]:
    """Read a folder of documents, sorted by id; documents without text are left out.

    Raises:
      InputError: for an empty folder, text that is not UTF-8, a malformed JSONL row or an id given
        twice; the file and line are named.
    """
    found: dict[str, tuple[Document, str]] = {}
    for file in document_files(folder):
        for document, place in _read(file, file.relative_to(folder).as_posix()):
            if not document.text.strip():
                continue
            if document.id in found:
                raise InputError(
                    f"{place}: document id {document.id!r} is that of {found[document.id][1]}; "
                    "give each document its own id."
                )
            found[document.id] = document, place
    if not found:
        raise InputError(f"The documents in {folder} are all empty; give documents with text.")
    return [found[id_][0] for id_ in sorted(found)]


def _read(file: Path, source: str) -> Iterator[tuple[Document, str]]:
    """The file's documents, each with the place to name in an error."""
    raw = read_text(file)
    suffix = file.suffix.lower()
    if suffix == ".jsonl":
        yield from _read_rows(file, source, raw)
        return
    title = ""
    if suffix in (".html", ".htm"):
        title, raw = html_text(raw)
    text = normalise(raw)
    title = normalise(title) or first_heading(text, suffix) or (_first_line(text) if suffix == ".txt" else "")
    yield Document(source, source, title or file.stem, text), str(file)


def _read_rows(file: Path, source: str, raw: str) -> Iterator[tuple[Document, str]]:
    for number, row in parse_lines(normalise(raw), file):
        place = f"{file}:{number}"
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise InputError(f'{place} has no text; write {{"text": "…"}} with, if you like, id and title.')
        for name in ("id", "title"):
            if row.get(name) is not None and (not isinstance(row[name], str) or not row[name].strip()):
                raise InputError(f"{place}: {name} must be text that is not empty, or left out.")
        id_ = row.get("id") or f"{source}:{number}"
        yield Document(id_, source, normalise(row.get("title") or id_), normalise(row["text"])), place


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.split("\n") if line.strip()), "")
    return line if len(line) <= _LONGEST_TITLE_LINE else ""
