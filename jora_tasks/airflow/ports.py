"""The ports that a local Airflow listens on, all on loopback."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from jora_tasks.airflow.environment import LOOPBACK
from jora_tasks.errors import InputError

DEFAULT_PORT = 8080
_PATIENCE = 10.0  # seconds


def choose_port(port: int | None, default: int = DEFAULT_PORT) -> int:
    """The port asked for, or the default, or where that is taken a free one.

    Raises:
      InputError: the port asked for is out of range or taken.
    """
    if port is None:
        return default if _bind(default) is None else _free_port()
    if not 1 <= port <= 65535:
        raise InputError(f"--port {port} is not a port; give a number from 1 to 65535.")
    if reason := _bind(port):
        raise InputError(f"--port {port} cannot be used ({reason}); give another or leave it out.")
    return port


@contextlib.contextmanager
def claimed(port: int | None, default: int = DEFAULT_PORT) -> Iterator[int]:
    """`choose_port`; until the end of the context no other start of this user takes the default as well.

    It is some seconds from the choice of a port until a server listens on it.
    """
    with contextlib.ExitStack() as claim:
        if port is None:
            lock = Path(tempfile.gettempdir(), f"jora-{os.getuid()}-port-{default}.lock")
            try:
                claim.enter_context(_locked(lock))
            except OSError:  # another start holds it, or the file cannot be had
                port = _free_port()
        yield choose_port(port, default)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Raises BlockingIOError where another holds the lock."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # a forked process may have the file open still
    finally:
        os.close(lock)


def wait_until_free(port: int) -> None:
    """Wait, for some seconds at most, for the port of a process that was killed.

    The kernel closes its sockets only after it has left the list of processes.
    """
    deadline = time.monotonic() + _PATIENCE
    while _bind(port) and time.monotonic() < deadline:
        time.sleep(0.1)


def _bind(port: int) -> str | None:
    """Why the port cannot be bound on loopback, or None if it can."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Airflow's server does
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            return (error.strerror or str(error)).lower()
    return None


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]
