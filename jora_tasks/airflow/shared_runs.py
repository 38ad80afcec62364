"""What the stages of a run said, where machines share artifacts: pages are not on the machine of the workers.

runs/<dag_id>/<run>/<task>.jsonl     the last event of each state, of the task's last try

A stage that runs is told of now and then, as far as the store takes it; one that has ended, with patience.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jora_tasks.airflow.runs import progress_file
from jora_tasks.costs import settle, share
from jora_tasks.errors import InputError, RunStopped
from jora_tasks.shared_store import SharedStore

_PATIENCE_SECONDS = 30.0
_LIVE_SECONDS, _LIVE_PATIENCE_SECONDS = 5.0, 2.0  # between two tellings of a running stage, and for each

_log = logging.getLogger(__name__)


def share_events(url: str, folder: Path, task: str, stage: str) -> None:
    """Share what a stage said last; where the store does not take it, that is logged and all.

    Args:
      url: of the shared artifacts.
      folder: of the DAG run, in the home of this machine.
      task: name of the task, with its index where it is mapped.
    """
    try:
        _share(SharedStore(url, _PATIENCE_SECONDS), _last(folder, stage), folder, task)
    except (InputError, RunStopped) as error:
        _log.warning("What stage %s said is not shared: %s", stage, error)


@contextlib.contextmanager
def told_live(url: str, folder: Path, task: str, stage: str) -> Iterator[None]:
    """While the block lasts, share what a stage says, beside it; a store that does not take it costs nothing.

    Args:
      url, folder, task, stage: as of `share_events`, which is to follow.
    """
    ended = threading.Event()

    def tell() -> None:
        told: bytes | None = None
        while not ended.wait(_LIVE_SECONDS):
            with contextlib.suppress(InputError, RunStopped, OSError):
                if (said := _last(folder, stage)) and said != told:
                    _share(SharedStore(url, _LIVE_PATIENCE_SECONDS), said, folder, task)
                    told = said

    telling = threading.Thread(target=tell, daemon=True)
    telling.start()
    try:
        yield
    finally:
        ended.set()
        telling.join(2 * _LIVE_PATIENCE_SECONDS)  # or it would write over what is shared at the end


def _last(folder: Path, stage: str) -> bytes:
    last = {event["state"]: event for event in events_in(progress_file(folder)) if event["stage"] == stage}
    return "".join(f"{json.dumps(event)}\n" for event in last.values()).encode()


def _share(shared: SharedStore, said: bytes, folder: Path, task: str) -> None:
    shared.write(said, *_place(folder), f"{task}.jsonl")


def share_costs(url: str, home: Path) -> None:
    """Share what stages cost of which only this process knows: that they were killed, or had no time to."""
    try:
        settle(home)
        share(home, SharedStore(url))
    except (InputError, OSError) as error:
        _log.warning("What stages cost is not shared: %s", error)


def shared_events(shared: SharedStore, folder: Path) -> list[dict[str, Any]]:
    """What the stages of a run said, in the order of time.

    Raises:
      InputError, RunStopped: if the store refuses.
    """
    place = _place(folder)
    told = [shared.read(*place, name) or b"" for name in shared.listed(*place)]
    return sorted(_events(b"".join(told)), key=lambda event: event.get("time", 0.0))


def events_in(file: Path) -> Iterator[dict[str, Any]]:
    """The events of a progress file; none if there is no such file."""
    try:
        return _events(file.read_bytes())
    except OSError:
        return iter(())


def _events(data: bytes) -> Iterator[dict[str, Any]]:
    """Whole events; of a run of equal beginnings (a training's steps, say) only the last is parsed."""
    lines = data.splitlines()
    for line, following in zip_longest(lines, lines[1:], fillvalue=b""):
        if b'"state": "running"' in line and line[:40] == following[:40]:
            continue
        try:
            event = json.loads(line)
        except ValueError:  # the last line, while it is being written
            continue
        if isinstance(event, dict) and {"stage", "state"} <= event.keys():
            yield event


def _place(folder: Path) -> tuple[str, str, str]:
    return ("runs", folder.parent.name, folder.name)
