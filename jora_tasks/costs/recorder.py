"""Records what a stage took, whoever ends it.

What a running stage has taken so far lies in a file on which its process holds a lock. Of a stage that was
killed, whoever next records or reads in that home finds the last of these, as "killed".
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.costs.records import KILLED, Cost, append, parse
from jora_tasks.costs.sharing import share
from jora_tasks.errors import InputError
from jora_tasks.launching.settings import launch_of
from jora_tasks.progress import FAILED, Event, Progress
from jora_tasks.trainer.group import group_of

_BEAT_SECONDS = 5.0
_ROOM = 2048  # bytes of a running stage's record, which is written over

_log = logging.getLogger(__name__)


class Recorder:
    """Takes what one stage costs while it runs; see `recording`."""

    def __init__(self, store: ArtifactStore, stage: str, line: str) -> None:
        self.id, self.home, self.state = uuid.uuid4().hex, store.home, FAILED
        self.stage, self.shared = stage, store.shared
        self._final: Cost | None = None
        self._store, self._line = store, line
        self._run = os.environ.get("JORA_AIRFLOW_RUN") or _run_by_hand(os.getpid())
        self._started = time.monotonic()
        self._before = self._counts()

    def seconds(self) -> float:
        return round(time.monotonic() - self._started, 3)

    def cost(self) -> Cost:
        """What it took so far, or until it ended."""
        if self._final is not None:
            return self._final
        taken = {name: value - self._before[name] for name, value in self._counts().items()}
        taken["device_seconds"] = round(taken["device_seconds"], 3)
        return Cost(self.id, self.stage, self._line, self._run, self.state, _now(), self.seconds(), **taken)

    @property
    def elsewhere(self) -> bool:
        """Whether other processes did the work, the first of which records it."""
        return self._store.meter.elsewhere

    def told(self) -> dict[str, Any]:
        """What a command's JSON object says: ``cost``, the figures; nothing where others did the work."""
        return {} if self.elsewhere else {"cost": self.cost().figures()}

    def end(self) -> None:
        self._final = self.cost()

    def _counts(self) -> dict[str, Any]:
        meter, shared = self._store.meter, self.shared
        return {
            "device_seconds": meter.device_seconds,
            "read": meter.read,
            "written": meter.written,
            "sent": shared.sent if shared else 0,
            "fetched": shared.fetched if shared else 0,
            "hits": meter.hits,
            "misses": meter.misses,
        }


@contextlib.contextmanager
def recording(recorder: Recorder, progress: Progress) -> Iterator[Progress]:
    """Record what the block costs, however it ends; `Recorder.state` is to say how.

    Gives the progress to report to, by which what was taken so far is kept now and then. Of several processes
    that work on one stage the first records, not who started them. Input that is refused leaves nothing.
    """
    group = None if launch_of(os.environ) else group_of(os.environ)
    if group is not None and group.process != 0:
        yield progress
        return
    with contextlib.ExitStack() as stack:
        running = _Running(recorder, stack)
        try:
            yield progress.with_sink(running.beat)
        except InputError:
            running.forget()
            raise
        except BaseException:
            running.end()
            raise
        running.end()


class _Running:
    """The file of a running stage, made when it has run for a while. Trouble with it is not the stage's."""

    def __init__(self, recorder: Recorder, stack: contextlib.ExitStack) -> None:
        self._recorder, self._stack = recorder, stack
        self._file = recorder.home / "costs" / "running" / f"{recorder.id}.json"
        self._descriptor: int | None = None
        self._kept = 0.0

    def beat(self, event: Event) -> None:
        seconds = self._recorder.seconds()
        if seconds - self._kept < _BEAT_SECONDS:
            return
        self._kept = seconds
        with _no_trouble():
            if self._descriptor is None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                opened = self._stack.enter_context(self._file.open("wb", buffering=0))
                fcntl.flock(opened, fcntl.LOCK_EX)
                self._descriptor = opened.fileno()
            so_far = json.dumps(asdict(self._recorder.cost()) | {"state": KILLED})
            os.pwrite(self._descriptor, so_far.encode().ljust(_ROOM), 0)

    def end(self) -> None:
        self._recorder.end()
        if self._recorder.elsewhere:
            self.forget()
            return
        with _no_trouble():
            settle(self._recorder.home)
            append(self._recorder.home, self._recorder.cost())
        self.forget()
        share(self._recorder.home, self._recorder.shared)

    def forget(self) -> None:
        with _no_trouble():
            self._file.unlink(missing_ok=True)


@contextlib.contextmanager
def _no_trouble() -> Iterator[None]:
    """A full disk, say; if it is the stage's trouble too, the stage tells."""
    try:
        yield
    except OSError as error:
        _log.warning("What a stage costs is not recorded: %s", error.strerror)


def settle(home: Path) -> None:
    """Record what killed stages took, as far as they said."""
    for file in (home / "costs" / "running").glob("*.json"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), file.open("rb") as left:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if file.exists():  # or another process has settled it
                if cost := parse(left.read()):  # or it was killed before it said anything
                    append(home, cost)
                file.unlink()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@lru_cache(maxsize=1)
def _run_by_hand(pid: int) -> str:
    """One run a process, as `jora run` is."""
    return f"by hand {uuid.uuid4().hex}"
