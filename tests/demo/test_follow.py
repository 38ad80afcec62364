"""Following a run: every event once, in order, whole lines only."""

from __future__ import annotations

from pathlib import Path

from jora_tasks.demo.follow import follow_run
from jora_tasks.progress import BUILT, Event, FileSink, Progress


def test_events_arrive_once_and_in_order_while_the_run_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "run" / "progress.jsonl"
    seen: list[Event] = []
    polls = 0

    def state() -> str:
        nonlocal polls
        polls += 1
        if polls == 2:
            Progress(FileSink(file))("corpus", done=1, total=2)
        if polls == 3:
            with file.open("ab") as stream:
                stream.write(b'{"stage": "corpus", "st')
        if polls == 4:
            with file.open("ab") as stream:
                stream.write(b'ate": "built", "fields": {"seconds": 1.0}}\n')
        return "success" if polls == 5 else "running"

    reached, events = follow_run(state, file, seen.append, sleep=lambda seconds: None)
    assert reached == "success"
    assert events == seen
    assert [(event.stage, event.state) for event in seen] == [("corpus", "running"), ("corpus", BUILT)]
    assert seen[1].fields == {"seconds": 1.0}


def test_a_run_that_says_nothing_ends_too(tmp_path: Path) -> None:
    assert follow_run(lambda: "failed", tmp_path / "absent", lambda event: None) == ("failed", [])
