"""What a month cost, by line of adapters and stage: its records summed up, each read once a process."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from jora_tasks.costs import FIGURES, KILLED, Cost, parse
from jora_tasks.progress import FAILED, REUSED
from jora_tasks.stages.pipeline import STAGES

_AHEAD = {"index": "embed", "contexts": "retrieve", "evaluate": "answer"}
_ORDER = [name for stage in STAGES for name in (_AHEAD.get(stage), stage) if name]


@dataclass
class Sum:
    """Of some executions.

    Attributes:
      count: how many.
      up_to_date: of them, those that had nothing to do.
      broken: of them, those that failed or were killed.
    """

    count: int = 0
    up_to_date: int = 0
    broken: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0
    read: int = 0
    written: int = 0
    sent: int = 0
    fetched: int = 0
    hits: int = 0
    misses: int = 0

    def add(self, cost: Cost) -> None:
        self.count += 1
        self.up_to_date += cost.state == REUSED
        self.broken += cost.state in (FAILED, KILLED)
        self._take(cost)

    def _take(self, other: Cost | Sum) -> None:
        for name in FIGURES:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @classmethod
    def of(cls, sums: Iterable[Sum]) -> Sum:
        """All of them together."""
        total = cls()
        for each in sums:
            total.count += each.count
            total.up_to_date += each.up_to_date
            total.broken += each.broken
            total._take(each)
        return total


@dataclass
class LineSum:
    """Of one line of adapters: its runs, and what its stages took."""

    runs: set[str] = field(default_factory=set)
    stages: dict[str, Sum] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, Sum]]:
        """The total, then each stage in the order of the pipeline, parts made ahead of a stage before it."""
        known = {name: place for place, name in enumerate(_ORDER)}
        stages = sorted(self.stages.items(), key=lambda each: (known.get(each[0], len(known)), each[0]))
        return [("all stages", Sum.of(self.stages.values())), *stages]


class Spending:
    """The sums of months; each look reads what came to their files since the last."""

    def __init__(self) -> None:
        self._months: dict[str, _Month] = {}
        self._lock = threading.Lock()  # requests are served by threads

    def of_month(self, month: str, files: Iterable[Path]) -> dict[str, LineSum]:
        """Line → its sums in a month, by name.

        Args:
          files: of records, which are appended to; a record that several have counts once.
        """
        with self._lock:
            known = self._months.setdefault(month, _Month())
            sizes = {file: file.stat().st_size for file in files}
            if any(sizes.get(file, 0) < offset for file, offset in known.offsets.items()):
                known = self._months[month] = _Month()  # other files than were read
            for file in sizes:
                known.read(file)
            return dict(sorted(known.lines.items()))


@dataclass
class _Month:
    """What was read of a month's files so far, up to which offset of each."""

    lines: dict[str, LineSum] = field(default_factory=dict)
    offsets: dict[Path, int] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def read(self, file: Path) -> None:
        offset = self.offsets.get(file, 0)
        with file.open("rb") as records:
            records.seek(offset)
            for record in records:
                if not record.endswith(b"\n"):  # it is being written
                    break
                offset += len(record)
                if (cost := parse(record)) and cost.id not in self.seen:
                    self.seen.add(cost.id)
                    self._add(cost)
        self.offsets[file] = offset

    def _add(self, cost: Cost) -> None:
        line = self.lines.setdefault(cost.line, LineSum())
        line.runs.add(cost.run)
        line.stages.setdefault(cost.stage, Sum()).add(cost)
