"""What a run's stages have said so far, from its progress file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jora_tasks.progress import BUILT, REUSED
from jora_tasks.stages.pipeline import STAGES


@dataclass(frozen=True)
class RunProgress:
    """The events of a run.

    Attributes:
      made: kind → (key, built or reused) of every artifact that a stage made or found, in order.
      registered: what the registration told: ``name``, ``version`` and ``alias``; empty before.
      last: stage → its last event, as written.
    """

    made: dict[str, dict[str, str]] = field(default_factory=dict)
    registered: dict[str, Any] = field(default_factory=dict)
    last: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_progress(file: Path) -> RunProgress:
    """The events of a progress file; none if there is no such file."""
    progress = RunProgress()
    for event in _events(file):
        stage, state, told = event["stage"], event["state"], event.get("fields", {})
        progress.last[stage] = event
        if state not in (BUILT, REUSED):
            continue
        kind = STAGES[stage].kind if stage in STAGES else None
        if kind and "key" in told:
            progress.made.setdefault(kind, {})[str(told["key"])] = state
        elif stage == "register":
            progress.registered.update(told, state=state, seconds=told.get("seconds"))
    return progress


def _events(file: Path) -> Iterator[dict[str, Any]]:
    """Whole events; of a run of equal beginnings (a training's steps, say) only the last is parsed."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return
    for line, following in zip(lines, [*lines[1:], b""], strict=True):
        if b'"state": "running"' in line and line[:40] == following[:40]:
            continue
        try:
            event = json.loads(line)
        except ValueError:  # the last line, while it is being written
            continue
        if isinstance(event, dict) and {"stage", "state"} <= event.keys():
            yield event
