"""What a run's stages have said so far, from its progress file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jora_tasks.airflow.shared_runs import events_in, shared_events
from jora_tasks.progress import BUILT, REUSED
from jora_tasks.shared_store import SharedStore
from jora_tasks.stages.pipeline import STAGES


@dataclass(frozen=True)
class RunProgress:
    """The events of a run.

    Attributes:
      made: kind → (key, built or reused) of every artifact that a stage made or found, in order.
      registered: what the registration told: ``name``, ``version``, ``alias`` and the verdict's key, as
        ``verdict``; empty before.
      last: stage → its last event, as written.
    """

    made: dict[str, dict[str, str]] = field(default_factory=dict)
    registered: dict[str, Any] = field(default_factory=dict)
    last: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_progress(file: Path, shared: SharedStore | None = None) -> RunProgress:
    """The events of a progress file; without one, those that machines share; else none."""
    progress = RunProgress()
    for event in events_in(file) if shared is None or file.exists() else shared_events(shared, file.parent):
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
