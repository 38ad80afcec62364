"""Which files are documents: those of a local folder, or a single file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jora_tasks.errors import InputError
from jora_tasks.reading import unreadable_refused
from jora_tasks.spec import DocumentsConfig
from retrieval.documents import Loaded, Unreadable
from retrieval.loaders import SUFFIXES, load, unreadable
from retrieval.page_cache import PageCache


@dataclass(frozen=True)
class SourceFile:
    """A file of documents.

    Attributes:
      name: its relative path, with forward slashes.
      path: where it lies.
      problem: why it cannot be read, if that is known beforehand.
    """

    name: str
    path: Path
    problem: str = ""

    def state(self) -> tuple[int, int] | None:
        """Size and time of the last change, in ns; None if the system tells neither."""
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_size, stat.st_mtime_ns


def is_document(name: str) -> bool:
    """Whether a relative path is that of a file to read: of a known kind, and nowhere hidden."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def local_files(path: Path) -> list[SourceFile]:
    """The files to read below a folder, or the one file, sorted by name.

    Hidden files and folders, and files of other kinds, are left out. A folder that is reached twice
    by symbolic links is read once.

    Raises:
      InputError: if there is no such folder or file, it holds no document, or a folder in it cannot
        be read.
    """
    with unreadable_refused(f"documents.path {path}"):
        if path.is_file() and is_document(path.name):
            return [SourceFile(path.name, path)]
        if not path.is_dir():
            raise InputError(
                f"documents.path {path} is not a folder or a file of a known kind; "
                "give the folder of your documents."
            )
        return checked_files([_local(path, file) for file in _walk(path)], str(path))


def checked_files(files: list[SourceFile], path: str) -> list[SourceFile]:
    """The files sorted by name.

    Raises:
      InputError: if there is none.
    """
    if not files:
        raise InputError(
            f"documents.path {path} holds no document; put {', '.join(SUFFIXES[:-1])} "
            f"or {SUFFIXES[-1]} files there."
        )
    return sorted(files, key=lambda file: file.name)


def load_file(file: SourceFile, config: DocumentsConfig, cache: PageCache | None = None) -> Iterator[Loaded]:
    """The documents of a file, and what stands for those that cannot be read."""
    if file.problem:
        yield Unreadable(file.name, file.problem)
        return
    try:
        with file.path.open("rb") as stream:
            yield from load(stream, os.fstat(stream.fileno()).st_size, file.name, config, cache)
    except OSError as error:
        yield Unreadable(file.name, unreadable(file.name, error))


def _local(folder: Path, file: Path) -> SourceFile:
    name = file.relative_to(folder).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = ascii(name).strip("'\"")
        return SourceFile(
            shown, file, f"{shown} has a path that is not UTF-8; rename the file or its folder."
        )
    if file.is_file():
        return SourceFile(name, file)
    what = "a link that leads nowhere" if file.is_symlink() else "no file but a pipe, a socket or a device"
    return SourceFile(name, file, f"{name} is {what}; remove it or put the document there.")


def _walk(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for path, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(path, name) for name in names if is_document(name))


def _raise(error: OSError) -> None:
    raise error
