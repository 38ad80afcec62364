"""What is asked of a file system that fsspec opens, whichever it is: one file written, copied or dated."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jora_tasks.writing import write_bytes

SLOWEST = 100_000
"""Bytes a second; a large file may take as long as a store that slow would, and not longer."""

# What file systems call the time of a file: local ones and SFTP, S3, GCS, Azure, memory.
_TIMES = ("mtime", "LastModified", "updated", "last_modified", "modified", "created")
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "az", "adl", "oss"}


def limit(system: Any, patience: float, size: int = 0) -> dict[str, float]:
    """How long a call may last that moves so many bytes, for file systems that can be told.

    Else a store that takes connections and never answers would keep it for minutes, or for good: a file
    system has tries of its own, and S3's waits without end to be let write.
    """
    from fsspec.asyn import AsyncFileSystem

    return {"timeout": max(1.0, patience) + size / SLOWEST} if isinstance(system, AsyncFileSystem) else {}


def create(system: Any, path: str, data: bytes, **limit: float) -> None:
    """Write a file unless there is one; of two at once, one does.

    A try that seemed to fail may have written it, so it is no error that there is one.
    """
    _make_folder(system, path)
    with contextlib.suppress(FileExistsError):
        if "file" in system.protocol:  # fsspec's own way is to look first, and a kill would leave a half
            temporary = Path(f"{path}.{uuid.uuid4().hex[:8]}")
            try:
                write_bytes(temporary, data)
                os.link(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        else:
            system.pipe_file(path, data, mode="create", **limit)


def write(system: Any, path: str, data: bytes, **limit: float) -> None:
    """Write a small file, whole or not at all."""
    _make_folder(system, path)
    if "file" in system.protocol:
        write_bytes(Path(path), data)
    else:
        system.pipe_file(path, data, **limit)


def put(system: Any, source: Path, target: str, patience: float) -> None:
    """Copy one file there; a large one goes in several parts, as its file system does it.

    Raises:
      OSError: it is not there whole, or took longer than `limit` lets it.
    """
    _make_folder(system, target)
    size = source.stat().st_size
    system.put_file(str(source), target, **limit(system, patience, size))
    if system.info(target, **limit(system, patience))["size"] != size:
        raise OSError(f"{target} was not written whole")


def get(system: Any, source: str, target: Path, patience: float) -> None:
    """Copy one file here.

    Raises:
      OSError: it took longer than `limit` lets it.
    """
    size = system.info(source, **limit(system, patience))["size"] or 0
    system.get_file(source, str(target), **limit(system, patience, size))


def written_at(told: Mapping[str, Any]) -> float:
    """When a file was written, as its file system tells; one that does not tell it counts as written now."""
    found = next((told[name] for name in _TIMES if told.get(name) is not None), None)
    if isinstance(found, str):  # GCS
        found = datetime.fromisoformat(found)
    if isinstance(found, datetime):
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return float(found) if isinstance(found, int | float) else time.time()


def _make_folder(system: Any, path: str) -> None:
    """The folder of a file, where there is such a thing; in an object store it would make a bucket."""
    if not _OBJECT_STORES & set([system.protocol] if isinstance(system.protocol, str) else system.protocol):
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
