"""The four processes of a local Airflow under one parent: ``python -m jora_tasks.airflow.components``.

Does what ``airflow standalone`` does, with three differences. No log servers: they listen on every
interface, and logs are read from disk anyway. If a component ends, all end, so a failed start is
seen. When told to stop, the API server goes last, so that running tasks can still say how they
ended.
"""

from __future__ import annotations

import contextlib
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
STOP_SECONDS = 12.0


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
    deadline = time.monotonic() + STOP_SECONDS
    for wave in (list(children.values()), [api_server] if api_server else []):
        for child in wave:
            child.terminate()
        for child in wave:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(deadline - time.monotonic(), 2))


if __name__ == "__main__":
    sys.exit(main())
