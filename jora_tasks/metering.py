"""What a process takes for its work: bytes of artifacts, seconds on devices, and what it found made."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path


class Meter:
    """Counts from the making of a store on.

    Attributes:
      read: bytes of artifacts that were checked by their digests, to be read or found made.
      written: bytes of artifacts that were made.
      hits, misses: artifacts that were asked for and found, or had to be made.
      elsewhere: whether the work was done by processes that were started for it, and that count it.
    """

    def __init__(self) -> None:
        self.read = self.written = self.hits = self.misses = 0
        self.elsewhere = False
        self._device_seconds = 0.0
        self._since: float | None = None

    def taken(self, folder: Path) -> None:
        """An artifact was read."""
        self.read += _size(folder)

    def found(self, folder: Path) -> None:
        """An artifact that was asked for was there, and was checked."""
        self.taken(folder)
        self.hits += 1

    def made(self, folder: Path) -> None:
        self.written += _size(folder)
        self.misses += 1

    @contextlib.contextmanager
    def on_devices(self) -> Iterator[None]:
        """Count the time of the block for each device that JAX has."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._device_seconds, self._since = self.device_seconds, None

    @property
    def device_seconds(self) -> float:
        """Seconds in `on_devices` times devices, so far.

        Every GPU or TPU chip that JAX has in all processes of the work counts; a host's CPU counts as one.
        """
        if self._since is None:
            return self._device_seconds
        return self._device_seconds + (time.monotonic() - self._since) * _devices()


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _devices() -> int:
    jax = sys.modules.get("jax")
    if jax is None:  # not needed yet
        return 1
    try:
        return jax.process_count() if jax.default_backend() == "cpu" else jax.device_count()
    except RuntimeError:  # its devices cannot be had; the work is about to say so
        return 1
