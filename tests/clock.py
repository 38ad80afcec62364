"""A wall clock that tests set, for the processes they start: ``clock.c``, compiled and preloaded."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

HOUR = 3600
YEAR = 365 * 24 * HOUR


@dataclass(frozen=True)
class Clock:
    """A clock by a file.

    Attributes:
      file: holds by how many seconds it is ahead of the machine's.
      environment: of the processes that go by it.
    """

    file: Path
    environment: dict[str, str]

    def set(self, ahead: int) -> None:
        """Let it be so many seconds ahead of the machine's, or behind it, at once for all."""
        with self.file.open("r+b", buffering=0) as file:
            file.write(ahead.to_bytes(8, "little", signed=True))


def make_clock(folder: Path) -> Clock:
    """A clock that is right at first; skips the test where there is no compiler."""
    if not (compiler := shutil.which("cc")):
        pytest.skip("no C compiler is installed")
    library, file = folder / "clock.so", folder / "clock"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
    file.write_bytes(bytes(8))
    return Clock(file, {"LD_PRELOAD": str(library), "JORA_TEST_CLOCK": str(file)})
