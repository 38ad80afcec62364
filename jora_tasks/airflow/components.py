"""The four processes of a local Airflow under one parent: ``python -m jora_tasks.airflow.components``.

Does what ``airflow standalone`` does, with three differences. No log servers: they listen on every
interface, and logs are read from disk anyway. A component that ends is started again, and where it
ends soon after its start all end, so a failed start is seen. When told to stop, the API server goes
last, so that running tasks can still say how they ended.

The scheduler is started again, too, when it has given itself up. Where the clock is set forward, or the
machine sleeps, it may take its own last sign of life for that of one which is gone, and then it resets
its own tasks for ever.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import psutil

from jora_tasks.airflow.environment import OWNER
from jora_tasks.airflow.processes import birth, members

AIRFLOW = (sys.executable, "-m", "airflow")
# The slowest to start comes first; nothing waits for the triggerer.
COMPONENTS = {
    "api-server": ("api-server",),
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}
STOP_SECONDS, API_STOP_SECONDS, REPEAT_SECONDS = 12.0, 8.0, 4.0
SETTLED_SECONDS = 20.0
"""A component that ends sooner after its start would only end again."""
_GIVEN_UP = "failed"  # state of a scheduler's row among Airflow's jobs


class _Stop(Exception):
    """Raised in the main thread by SIGTERM and SIGINT."""


def main() -> int:
    """Run until told to stop (exit code 0) or until a component cannot start (1)."""
    signal.signal(signal.SIGTERM, _raise_stop)
    signal.signal(signal.SIGINT, _raise_stop)
    children: dict[str, subprocess.Popen[bytes]] = {}
    started: dict[str, float] = {}
    home = Path(os.environ["AIRFLOW_HOME"])
    try:
        _migrate(home)
        seen = _last_scheduler(home)[0]
        while True:
            number, state = _last_scheduler(home)
            if number != seen and state == _GIVEN_UP and "scheduler" in children:
                print("the scheduler took itself for gone", flush=True)  # noqa: T201
                seen = number
                children["scheduler"].kill()
                children["scheduler"].wait()
                started["scheduler"] -= SETTLED_SECONDS  # it did start
            for name in COMPONENTS:
                child = children.get(name)
                if child is not None and child.poll() is None:
                    continue
                if child is not None:
                    print(f"{name} ended with exit code {child.returncode}", flush=True)  # noqa: T201
                    if time.monotonic() - started[name] < SETTLED_SECONDS:
                        return 1
                    _end_orphans(children)
                children[name], started[name] = _start(name), time.monotonic()
            time.sleep(0.5)
    except _Stop:
        return 0
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        _stop(children)


def _last_scheduler(home: Path) -> tuple[int, str]:
    """Number and state of the last scheduler that Airflow's database knows of; 0 if that cannot be told."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"{(home / 'airflow.db').as_uri()}?mode=ro", uri=True)
        ) as database:
            newest = "SELECT id, state FROM job WHERE job_type = 'SchedulerJob' ORDER BY id DESC LIMIT 1"
            return database.execute(newest).fetchone() or (0, "")
    except sqlite3.Error:
        return 0, ""


def _start(name: str) -> subprocess.Popen[bytes]:
    # Its own group: a signal to the parent's group must not reach the API server first.
    group = 0 if name == "api-server" else None
    return subprocess.Popen([*AIRFLOW, *COMPONENTS[name]], process_group=group)


def _end_orphans(children: Mapping[str, subprocess.Popen[bytes]]) -> None:
    """Kill what a killed component left behind, a scheduler its tasks: the next scheduler tries those again.

    Their detached jobs have a session of their own and go on.
    """
    me = psutil.Process()
    if os.getsid(0) != me.pid:  # started by hand: the session is a terminal's
        return
    kept = {child.pid for child in children.values()}
    for child in children.values():
        with contextlib.suppress(psutil.Error):
            kept |= {process.pid for process in psutil.Process(child.pid).children(recursive=True)}
    mark = (OWNER, os.environ.get(OWNER, ""))
    for process in members(me.pid, birth(me.pid), mark):
        if process.pid not in kept:
            with contextlib.suppress(psutil.Error):
                process.kill()


def _raise_stop(number: int, frame: FrameType | None) -> None:
    raise _Stop


def _migrate(home: Path) -> None:
    """Create or upgrade the database, unless this version of Airflow already did."""
    stamp = home / "migrated"
    done = f"apache-airflow-core {version('apache-airflow-core')}\n"
    if (home / "airflow.db").is_file() and stamp.is_file() and stamp.read_text() == done:
        return
    subprocess.run([*AIRFLOW, "db", "migrate"], check=True)
    stamp.write_text(done)


def _stop(children: dict[str, subprocess.Popen[bytes]]) -> None:
    api_server = children.pop("api-server", None)
    _end(list(children.values()), STOP_SECONDS)
    if api_server is not None:
        _end([api_server], API_STOP_SECONDS)


def _end(children: list[subprocess.Popen[bytes]], seconds: float) -> None:
    """SIGTERM, and again for a scheduler that lost the first: a listener at work may swallow its exit."""
    deadline = time.monotonic() + seconds
    while (left := [child for child in children if child.poll() is None]) and time.monotonic() < deadline:
        for child in left:
            child.terminate()
        until = time.monotonic() + REPEAT_SECONDS
        while any(child.poll() is None for child in left) and time.monotonic() < until:
            time.sleep(0.1)
    for child in children:  # reaps those that ended, too: none stays behind as a zombie
        child.kill()
        child.wait()


if __name__ == "__main__":
    sys.exit(main())
