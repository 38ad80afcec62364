"""A real `mlflow server` on loopback, which can be killed and started again at its address."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path


class Server:
    """An `mlflow server` over ``server.db`` and ``artifacts`` of a folder.

    Attributes:
      address: its own, the same after every start.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self._folder = folder
        self._options = {
            "--host": "127.0.0.1",
            "--port": str(port),
            "--workers": str(workers),
            "--backend-store-uri": f"sqlite:///{folder}/server.db",
            "--artifacts-destination": str(folder / "artifacts"),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = (part for pair in self._options.items() for part in pair)
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
                return
            except OSError:
                told = (self._folder / "log").read_text()
                assert self._process.poll() is None and time.monotonic() < deadline, told
                time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def serving(folder: Path, workers: int = 1) -> Iterator[Server]:
    """A server that runs."""
    server = Server(folder, workers)
    try:
        server.start()
        yield server
    finally:
        server.kill()
