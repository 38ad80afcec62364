"""Registries to test against: the one in the home, and a real server on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from jora_tasks.artifacts import ArtifactStore


@pytest.fixture(scope="session")
def mlflow_server(empty_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an `mlflow server` over SQLite."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_registry, folder / "server.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "2",
        "--backend-store-uri": f"sqlite:///{folder}/server.db",
        "--artifacts-destination": str(folder / "artifacts"),
    }
    command = [sys.executable, "-m", "mlflow", "server", *(part for pair in options.items() for part in pair)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture(params=["embedded", pytest.param("server", marks=pytest.mark.slow)])
def any_registry(
    request: pytest.FixtureRequest, registry_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> ArtifactStore:
    """A home whose registry lies in it, or is the server's."""
    if request.param == "server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("mlflow_server"))
    return registry_store
