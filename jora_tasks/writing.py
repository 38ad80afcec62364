"""Files and folders that are there whole or as before, whoever is killed; output that replaces nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from jora_tasks.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file that is there whole or as before, whoever is killed."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """As `write_text`, of bytes."""
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_bytes(data)
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder that becomes ``path`` when the block ends well, and vanishes if not.

    A folder that lies there already is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        _sync(temporary)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        temporary.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder: in one step its name, then its files, of which a kill may leave some.

    They are left as what `atomic_folder` leaves of a killed writer.

    Raises:
      FileNotFoundError: if it is not there.
    """
    gone = path.rename(path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}"))
    shutil.rmtree(gone, ignore_errors=True)


def check_unused(output: Path) -> None:
    """Refuse a folder for output that holds anything already, or cannot be made.

    Raises:
      InputError: naming it.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"output {output} is in use; give a folder that is absent or empty.")
    if file := next((each for each in output.absolute().parents if each.is_file()), None):
        raise InputError(f"output {output} is below the file {file}; give a folder that can be made.")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
