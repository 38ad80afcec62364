"""``metrics.jsonl``: one line an update, cut back to a checkpoint when a run goes on from it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from jora_tasks.writing import write_text

METRICS = "metrics.jsonl"
CURVES = {
    "loss": "train/loss",
    "eval_loss": "eval/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "train/tokens_per_second",
    "mfu_4n": "train/mfu_4n",
}
"""The figures that trackers draw, and what they call them."""


class MetricsLog:
    """Appends lines and knows their digest. Not for two writers."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._open: BinaryIO | None = None
        self._sha = hashlib.sha256()

    def cut(self, lines: int) -> None:
        """Leave the first lines alone, or as many as there are whole."""
        self.close()
        kept = b"".join(_whole_lines(self.file)[:lines])
        write_text(self.file, kept.decode())

    def append(self, metrics: Mapping[str, Any]) -> None:
        """Write one line, which a kill of this process cannot take back."""
        if self._open is None:
            self._sha = hashlib.sha256(b"".join(_whole_lines(self.file)))
            self._open = self.file.open("ab")
        line = (json.dumps(metrics) + "\n").encode()
        self._open.write(line)
        self._open.flush()
        self._sha.update(line)

    def digest(self) -> str:
        """Digest of all lines so far; the one that `digest_lines` finds in the file."""
        return (self._sha if self._open else hashlib.sha256(b"".join(_whole_lines(self.file)))).hexdigest()

    def sync(self) -> None:
        """Return when the lines are on the disk; from any thread."""
        if self._open is not None:
            os.fsync(self._open.fileno())

    def close(self) -> None:
        if self._open is not None:
            with contextlib.suppress(OSError):  # of a line that failed before, and was told then
                self._open.close()
            self._open = None


def digest_lines(file: Path, count: int) -> str | None:
    """Digest of the first lines of a metrics file; None if there are fewer."""
    lines = _whole_lines(file)[:count]
    return hashlib.sha256(b"".join(lines)).hexdigest() if len(lines) == count else None


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The metrics of a ``metrics.jsonl``; a line torn by a kill is left out, and none is no error."""
    return [json.loads(line) for line in _whole_lines(file)]


def _whole_lines(file: Path) -> list[bytes]:
    if not file.exists():
        return []
    return [line + b"\n" for line in file.read_bytes().split(b"\n")[:-1]]
