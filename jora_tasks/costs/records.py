"""Records of what stages took, and the files of a home that hold them, a month each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

KILLED = "killed"
FIGURES = ("seconds", "device_seconds", "read", "written", "sent", "fetched", "hits", "misses")

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, le=2**63)]


@dataclass(frozen=True)
class Cost:
    """What one execution of a stage took.

    Attributes:
      id: of the execution.
      line: name of the line of adapters.
      run: ``dag_id/run_id`` of the Airflow run; of a run by hand, `id` of its process's first stage.
      state: built, reused, failed or killed.
      ended: when, ISO 8601 in UTC.
      seconds: wall time.
      device_seconds: see `jora_tasks.metering.Meter`.
      read, written: bytes of artifacts.
      sent, fetched: bytes to and from what machines share.
      hits, misses: artifacts that were found made, and that had to be made.
    """

    id: str
    stage: str
    line: str
    run: str
    state: str
    ended: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT[\d:]{8}Z$")]
    seconds: _Seconds
    device_seconds: _Seconds
    read: _Count
    written: _Count
    sent: _Count
    fetched: _Count
    hits: _Count
    misses: _Count

    def figures(self) -> dict[str, int | float]:
        """What it took, by name."""
        return {name: getattr(self, name) for name in FIGURES}


_COST: TypeAdapter[Cost] = TypeAdapter(Cost)


def months(home: Path) -> list[str]:
    """The months that have records, newest first, as in ``2026-01``."""
    return sorted((file.stem for file in (home / "costs").glob("????-??.jsonl")), reverse=True)


def month_file(home: Path, month: str) -> Path:
    return home / "costs" / f"{month}.jsonl"


def parse(line: bytes) -> Cost | None:
    """The record of a line; None for a half one, or what is none."""
    try:
        return _COST.validate_json(line, strict=True)
    except ValueError:
        return None


def of_run(files: Iterable[Path], run: str) -> list[Cost]:
    """The records of an Airflow run, in the order of their ends; of an id the first, as sums have it.

    Args:
      run: ``dag_id/run_id``.
    """
    named = json.dumps(run).encode()
    found: dict[str, Cost] = {}
    for file in files:
        for line in file.read_bytes().splitlines():
            if named in line and (cost := parse(line)) and cost.run == run:
                found.setdefault(cost.id, cost)
    return sorted(found.values(), key=lambda cost: cost.ended)


def append(home: Path, cost: Cost) -> None:
    """One write, so that no one reads half of it; what a killed writer left half ends at its newline."""
    file = month_file(home, cost.ended[:7])
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, f"\n{json.dumps(asdict(cost))}\n".encode())
    finally:
        os.close(descriptor)
