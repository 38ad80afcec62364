"""What was attempted, a line a chunk, appended as it happens: what survives a kill and is gone on from."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from jora_tasks.drafting.drafts import KEPT
from jora_tasks.errors import InputError
from jora_tasks.reading import parse_lines, read_text, unreadable_refused

VERSION = 1


class Journal:
    """Attempts in a JSONL file: first who writes, then a chunk's id, its outcome and, if kept, its row.

    Args:
      path: the file; made if absent.
      writer: who drafts; another one may not go on with this file.

    Raises:
      InputError: if the file is not such a journal or another writer's, or another process has it open.
    """

    def __init__(self, path: Path, writer: Mapping[str, Any]) -> None:
        self.path = path
        self.outcomes: dict[str, str] = {}
        self.rows: list[dict[str, Any]] = []
        with unreadable_refused(f"--output: {path}"):
            self._file = path.open("ab+")
        try:
            self._open({"version": VERSION, "writer": dict(writer)})
        except BaseException:
            self._file.close()
            raise

    def add(self, attempts: Iterable[tuple[str, str, dict[str, Any] | None]]) -> None:
        """Append chunk ids with outcomes and rows; they are on disk when this returns."""
        lines = []
        for chunk_id, outcome, row in attempts:
            self._keep(chunk_id, outcome, row)
            line = {"chunk_id": chunk_id, "outcome": outcome} | ({"row": row} if row else {})
            lines.append(json.dumps(line, ensure_ascii=False))
        self._append(lines)

    def counts(self) -> Counter[str]:
        """Outcome → chunks."""
        return Counter(self.outcomes.values())

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _open(self, header: dict[str, Any]) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.path} is being written by another process; wait for it, or give another --output."
            ) from None
        self._cut_torn_line()
        lines = parse_lines(read_text(self.path), self.path)
        number, first = next(lines, (0, None))
        if not number:
            self._append([json.dumps(header, ensure_ascii=False)])
            return
        if not isinstance(first, dict) or not isinstance(first.get("writer"), dict):
            raise InputError(f"{self.path} is no journal of `jora questions`; give another --output.")
        if first != header:
            raise InputError(
                f"{self.path} was begun by {_shown(first)}, not by {_shown(header)}; give the same model "
                "to go on, or another --output."
            )
        for number, line in lines:
            if not _is_attempt(line):
                raise InputError(
                    f"{self.path}:{number} is no attempt as `jora questions` writes them; remove that line, "
                    "or give another --output."
                )
            self._keep(line["chunk_id"], line["outcome"], line.get("row"))

    def _keep(self, chunk_id: str, outcome: str, row: dict[str, Any] | None) -> None:
        self.outcomes[chunk_id] = outcome
        if outcome == KEPT and row is not None:
            self.rows.append(row)

    def _cut_torn_line(self) -> None:
        """A kill in the middle of a write leaves a line without its end: that chunk is attempted again."""
        self._file.seek(0)
        content = self._file.read()
        self._file.truncate(content.rfind(b"\n") + 1)

    def _append(self, lines: Iterable[str]) -> None:
        self._file.write("".join(f"{line}\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def _is_attempt(line: Any) -> bool:
    """A chunk's id and its outcome, with a question if there is one."""
    if not isinstance(line, dict) or not isinstance(line.get("chunk_id"), str):
        return False
    row = line.get("row")
    if line.get("outcome") == KEPT:
        return isinstance(row, dict) and isinstance(row.get("question"), str)
    return isinstance(line.get("outcome"), str)


def _shown(header: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in dict(header["writer"]).items())
