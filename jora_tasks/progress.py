"""What a stage is doing, for whoever watches: a terminal, a log, a file that another process tails.

A stage calls ``progress("train", done=12, total=50, unit="steps", loss=0.31)``. A sink is any
callable that takes one `Event`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

RUNNING, BUILT, REUSED, FAILED = "running", "built", "reused", "failed"


@dataclass(frozen=True)
class Event:
    """One report of one stage. ``fields`` holds figures such as loss or tokens_per_second."""

    stage: str
    state: str = RUNNING
    done: int | None = None
    total: int | None = None
    unit: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)


Sink = Callable[[Event], None]


class Progress:
    """Sends events to its sinks; without a sink it is silent."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def with_sink(self, sink: Sink) -> Progress:
        """The same with one more sink."""
        return Progress(*self._sinks, sink)

    def __call__(
        self,
        stage: str,
        *,
        state: str = RUNNING,
        done: int | None = None,
        total: int | None = None,
        unit: str = "",
        **fields: Any,
    ) -> None:
        event = Event(stage, state, done, total, unit, fields)
        for sink in self._sinks:
            sink(event)


def describe(event: Event) -> str:
    """The event in words, as ``train 12/50 steps, loss 0.31, 305 tok/s, 1:57 left``."""
    if event.state in (BUILT, FAILED):
        head = f"{event.stage}: {event.state}"
    elif event.state == REUSED:
        head = f"{event.stage}: up to date"
    elif event.done is None:
        head = event.stage
    else:
        head = f"{event.stage} {event.done:,}" + (f"/{event.total:,}" if event.total else "")
        head += f" {event.unit}" if event.unit else ""
    return ", ".join([head, *(_figure(name, value) for name, value in event.fields.items())])


# Figures that have a form of their own; all others are told as "name value".
_FORMS: dict[str, Callable[[float], str]] = {
    "seconds": lambda value: f"{value:,.1f} s",
    "eta_seconds": lambda value: "{}:{:02} left".format(*divmod(round(value), 60)),
    "tokens_per_second": lambda value: f"{value:,.0f} tok/s",
    "learning_rate": lambda value: f"lr {value:.1e}",
}


def _figure(name: str, value: Any) -> str:
    if name in _FORMS:
        return _FORMS[name](value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{name.replace('_', ' ')} {value}"
    return f"{name.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{name} {value:,.4g}"


class LineSink:
    """Writes one line an event, at most one a stage every ``interval`` seconds while it runs.

    A failure has no line: the error itself follows, in words.
    """

    def __init__(self, stream: TextIO | None = None, interval: float = 2.0) -> None:
        self._stream = stream or sys.stderr
        self._interval = interval
        self._last: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        if event.state == FAILED:
            return
        finished = event.state != RUNNING or (event.done is not None and event.done == event.total)
        # Both ways: a clock that was set back must not silence it.
        if not finished and abs(event.time - self._last.get(event.stage, 0)) < self._interval:
            return
        self._last[event.stage] = event.time
        print(describe(event), file=self._stream, flush=True)


class FileSink:
    """Appends each event as a JSON line; whole lines, so that a reader can tail the file."""

    def __init__(self, path: str | Path) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def __call__(self, event: Event) -> None:
        os.write(self._file, (json.dumps(asdict(event)) + "\n").encode())


class RichSink:
    """Shows each stage as a progress bar on a terminal, with its figures; use it in a ``with``."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column

        def column(**options: Any) -> Column:
            return Column(no_wrap=True, **options)

        self._bars = Progress(
            TextColumn("[bold]{task.description}", table_column=column(width=9)),
            BarColumn(bar_width=20, table_column=column(width=20)),
            MofNCompleteColumn(table_column=column(min_width=11)),
            TimeElapsedColumn(table_column=column(min_width=7)),
            TextColumn(
                "{task.fields[figures]}",
                style="dim",
                markup=False,
                table_column=column(ratio=1, overflow="ellipsis"),
            ),
            console=console,
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        if event.stage not in self._tasks:
            self._bars.start()  # once; more starts change nothing
            self._tasks[event.stage] = self._bars.add_task(event.stage, total=None, figures="")
        task = self._tasks[event.stage]
        words = describe(event).partition(", ")[2] if event.state == RUNNING else describe(event)
        self._bars.update(
            task, completed=event.done, total=event.total, figures=words.removeprefix(f"{event.stage}: ")
        )
        if event.state != RUNNING:
            total = next(each.total for each in self._bars.tasks if each.id == task) or 1
            self._bars.update(task, total=total, completed=total if event.state != FAILED else None)
            self._bars.stop_task(task)

    def __enter__(self) -> RichSink:
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the bars as they are; what is printed next comes below them."""
        self._bars.stop()
