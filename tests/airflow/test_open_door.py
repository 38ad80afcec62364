"""An API server without a login, started as Airflow's own command starts it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from jora_tasks.airflow.open_door import host_of, is_loopback

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def api_server(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Airflow's API server for the tests' database, where everyone is an admin."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("UNIT_TEST_MODE")}
    environment |= {
        "JORA_HOME": str(folder / "jora"),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow", "api-server", *arguments],
            env=environment,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def address_of_this_machine() -> str:
    found = [
        each.address
        for addresses in psutil.net_if_addrs().values()
        for each in addresses
        if each.family == socket.AF_INET and not is_loopback(each.address)
    ]
    return found[0] if found else pytest.skip("this machine has no address beside loopback's")


def test_it_does_not_start_off_loopback(airflow_db: None, tmp_path: Path) -> None:
    with api_server(tmp_path) as process:  # Airflow's default is to listen everywhere
        assert process.wait(120) == 2
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith(
        "jora: Airflow's API would let everyone in as an admin on 0.0.0.0: set AIRFLOW__CORE"
    )


def test_its_workers_answer_loopback_alone(airflow_db: None, tmp_path: Path) -> None:
    """Their parent would only start them again, so they live."""
    own = address_of_this_machine()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with api_server(tmp_path, "--workers", "2", "--port", str(port)), httpx.Client(trust_env=False) as client:
        deadline = time.monotonic() + 180
        while True:
            with contextlib.suppress(httpx.TransportError):
                if client.get(f"http://127.0.0.1:{port}/api/v2/version").status_code == 200:
                    break
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.5)
        for path in ("/api/v2/version", "/execution/health", "/auth/token", "/jora/adapters", "/"):
            answer = client.get(f"http://{own}:{port}{path}")
            assert answer.status_code == 403, path
            assert answer.text.startswith(f"Airflow's API would let everyone in as an admin on {own}")


@pytest.mark.parametrize(
    ("command", "host"),
    [
        (["airflow", "api-server", "-H", "10.0.0.1"], "10.0.0.1"),
        (["/x/airflow/__main__.py", "api-server", "--port", "1", "--host=::1", "--daemon"], "::1"),
        (["airflow", "scheduler", "--host", "10.0.0.1"], None),
        (["airflow"], None),
    ],
)
def test_where_a_command_line_listens(command: list[str], host: str | None) -> None:
    assert host_of(command) == host


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.1.2.3", "example.org", "")),
    ],
)
def test_which_addresses_are_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) == local
