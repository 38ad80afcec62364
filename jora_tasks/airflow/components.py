"""The four processes of a local Airflow under one parent: ``python -m jora_tasks.airflow.components``.

Does what ``airflow standalone`` does, with three differences. No log servers: they listen on every
interface, and logs are read from disk anyway. If a component ends, all end, so a failed start is
seen. When told to stop, the API server goes last, so that running tasks can still say how they
ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import FrameType

AIRFLOW = (sys.executable, "-m", "airflow")
# The slowest to start comes first; nothing waits for the triggerer.
COMPONENTS = {
    "api-server": ("api-server",),
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}
STOP_SECONDS, API_STOP_SECONDS, REPEAT_SECONDS = 12.0, 8.0, 4.0


class _Stop(Exception):
    """Raised in the main thread by SIGTERM and SIGINT."""


def main() -> int:
    """Run until told to stop (exit code 0) or until a component ends (1)."""
    signal.signal(signal.SIGTERM, _raise_stop)
    signal.signal(signal.SIGINT, _raise_stop)
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        _migrate(Path(os.environ["AIRFLOW_HOME"]))
        for name, arguments in COMPONENTS.items():
            # Its own group: a signal to the parent's group must not reach the API server first.
            group = 0 if name == "api-server" else None
            children[name] = subprocess.Popen([*AIRFLOW, *arguments], process_group=group)
        while True:
            for name, child in children.items():
                if child.poll() is not None:
                    print(f"{name} ended with exit code {child.returncode}", flush=True)  # noqa: T201
                    return 1
            time.sleep(0.5)
    except _Stop:
        return 0
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        _stop(children)


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
