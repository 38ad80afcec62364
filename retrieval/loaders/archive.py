"""The files in a zip archive, read where they lie: nothing is unpacked to disk."""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, BinaryIO

from jora_tasks.errors import InputError
from jora_tasks.spec import DocumentsConfig
from retrieval.documents import Unreadable

# What zipfile and its decompressors raise for a damaged archive.
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError)

# Text shrinks up to about 30-fold, repeated rows some more; deflate's limit is 1,032.
_MOST_RATIO = 200
_SMALL = 16 << 20  # bytes that no ratio makes dangerous


def archive_members(
    stream: BinaryIO, size: int, source: str, suffixes: tuple[str, ...], config: DocumentsConfig
) -> Iterator[tuple[IO[bytes], int, str] | Unreadable]:
    """The archive's files of these kinds: stream, size in bytes and source, as ``docs.zip/a/b.md``.

    Sizes are those that the archive declares; a stream ends there whatever lies behind it.

    Args:
      size: the archive's own, in bytes.

    Raises:
      InputError: for an archive that is damaged, too large or a bomb.
    """
    try:
        archive = zipfile.ZipFile(stream)
    except DAMAGE as error:
        raise InputError(
            f"{source} is not a zip archive that can be read ({error}); pack it again."
        ) from None
    with archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        _refuse_bomb(sum(member.file_size for member in members), size, source, config)
        for member in sorted(members, key=lambda member: member.filename):
            name = member.filename
            if _hidden(name) or not name.lower().endswith((*suffixes, ".zip")):
                continue
            if problem := _problem(member):
                yield Unreadable(source, f"{source}/{name} {problem}")
                continue
            try:
                opened = archive.open(member)
            except DAMAGE as error:
                yield Unreadable(source, damaged(f"{source}/{name}", error))
                continue
            with opened:
                yield opened, member.file_size, f"{source}/{name}"


def damaged(source: str, error: Exception) -> str:
    """What to say of an archive, or of a file in one, that cannot be unpacked."""
    return f"{source} is damaged ({error or type(error).__name__}); pack it again."


def _hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)


def _problem(member: zipfile.ZipInfo) -> str:
    path = PurePosixPath(member.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in path.parts[0]:
        return "has a path that leaves the archive; pack it again with relative paths."
    if member.flag_bits & 1:
        return "is encrypted; pack it without a password."
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a link; pack the file itself."
    if path.suffix.lower() == ".zip":
        return "is an archive within an archive; unpack it beside the other documents."
    return ""


def _refuse_bomb(unpacked: int, size: int, source: str, config: DocumentsConfig) -> None:
    if unpacked > config.max_archive_mib << 20:
        raise InputError(
            f"{source} unpacks to {unpacked >> 20:,} MiB, more than documents.max_archive_mib "
            f"({config.max_archive_mib:,}); unpack it, or raise the bound."
        )
    if unpacked > max(_SMALL, size * _MOST_RATIO):
        raise InputError(
            f"{source} unpacks {size:,} bytes to {unpacked >> 20:,} MiB, as a zip bomb does; "
            "unpack it if it is none."
        )
