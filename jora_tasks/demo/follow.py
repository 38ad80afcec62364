"""Follows a DAG run live: its state from Airflow, what its stages do from their progress file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jora_tasks.progress import Event, Sink

FINISHED = ("success", "failed")


def follow_run(
    state: Callable[[], str],
    progress_file: Path,
    sink: Sink,
    *,
    poll_seconds: float = 1.0,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[str, list[Event]]:
    """Pass a run's events on as they come until the run has ended.

    Args:
      state: the run's state in Airflow: queued, running, success or failed.
      progress_file: JSON lines that the run's stages append to; may not exist yet.
      sink: gets each event once, in order.

    Returns:
      The final state and all events.
    """
    tail = _tail(progress_file)
    events: list[Event] = []
    while True:
        reached = state()
        for event in next(tail):
            events.append(event)
            sink(event)
        if reached in FINISHED:
            return reached, events
        sleep(poll_seconds)


def _tail(file: Path) -> Iterator[list[Event]]:
    """Each ``next`` gives the events whose whole lines have been written since the last."""
    position, rest = 0, b""
    while True:
        if file.is_file():
            with file.open("rb") as stream:
                stream.seek(position)
                data = stream.read()
            position += len(data)
            *lines, rest = (rest + data).split(b"\n")
        else:
            lines = []
        yield [_event(json.loads(line)) for line in lines if line]


def _event(data: dict[str, Any]) -> Event:
    return Event(**data)
