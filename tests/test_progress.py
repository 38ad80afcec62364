"""Progress: events reach every sink, in words and as JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from jora_tasks.progress import BUILT, REUSED, Event, FileSink, LineSink, Progress, RichSink, describe


def test_events_are_told_in_words() -> None:
    fields = {"loss": 0.31234, "learning_rate": 1e-3, "tokens_per_second": 1234.5, "eta_seconds": 125.2}
    event = Event("train", done=12, total=50, unit="steps", fields=fields)
    assert describe(event) == "train 12/50 steps, loss 0.3123, lr 1.0e-03, 1,234 tok/s, 2:05 left"
    assert describe(Event("index", REUSED)) == "index: up to date"


def test_a_minute_never_has_sixty_seconds() -> None:
    event = Event("train", done=1, total=2, unit="steps", fields={"eta_seconds": 119.7})
    assert describe(event) == "train 1/2 steps, 2:00 left"


def test_lines_are_few_but_the_last_is_never_lost() -> None:
    stream = io.StringIO()
    progress = Progress(LineSink(stream, interval=60))
    for step in range(1, 101):
        progress("train", done=step, total=100)
    progress("train", state=BUILT, seconds=1.5)
    assert stream.getvalue().splitlines() == ["train 1/100", "train 100/100", "train: built, 1.5 s"]


def test_a_clock_that_is_set_back_silences_nothing() -> None:
    stream = io.StringIO()
    lines = LineSink(stream, interval=2)
    for moment in (1e9, 1e9 + 1, 1e9 - 3e7, 1e9 - 3e7 + 1):
        lines(Event("train", time=moment, done=int(moment), unit="steps"))
    assert len(stream.getvalue().splitlines()) == 2


def test_the_file_has_a_json_line_for_each_event(tmp_path: Path) -> None:
    file = tmp_path / "run" / "progress.jsonl"
    Progress(FileSink(file))("index", done=1, total=2, chunks=7)
    Progress(FileSink(file))("index", state=BUILT)
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert [event["state"] for event in events] == ["running", "built"]
    assert events[0]["fields"] == {"chunks": 7}


def test_a_terminal_shows_a_bar_for_each_stage() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with RichSink(console) as sink:
        progress = Progress(sink)
        progress("corpus", done=1, total=2, unit="documents")
        progress("corpus", state=BUILT, seconds=0.1)
        progress("index", state=REUSED)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    last = shown.rpartition("\x1b[2K")[2]
    assert "corpus" in last
    assert "2/2" in last
    assert "up to date" in last
