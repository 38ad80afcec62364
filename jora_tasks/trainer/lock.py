"""One trainer to a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from jora_tasks.errors import InputError


@contextlib.contextmanager
def sole_use(folder: Path, name: str) -> Iterator[None]:
    """Hold a folder, which need not exist yet, against other processes.

    The lock is the kernel's, on a hidden file beside the folder, so it ends with its holder however that
    dies. The file is removed at the end; one that a kill left behind means nothing.

    Args:
      name: what an error calls the folder.

    Raises:
      InputError: if another process holds it.
    """
    folder = folder.absolute()
    file = folder.with_name(f".{folder.name.lstrip('.')}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(
                f"{name} {folder} is in use by another trainer; wait for it, or give another folder."
            ) from None
        if _is(descriptor, file):
            break
        os.close(descriptor)  # its last holder removed it between the two lines above
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _is(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
