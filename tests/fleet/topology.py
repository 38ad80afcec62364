"""The services of docker/compose.yaml and compose.tls.yaml as processes of this machine, on loopback.

Each runs the command and the environment that the file gives it; only addresses, folders and the role of
the database are put in place of those of containers. PostgreSQL is one that runs here
(``$JORA_FLEET_POSTGRES``, by default ``postgresql://postgres@127.0.0.1:5432/postgres``), Redis is started
from the installed ``redis-server``, and moto stands for the object store. Each of the three is reached
through a `Proxy`, which can be shut for a while. A process that ends though its service has
``restart: unless-stopped`` is started again, as an engine does it.

API server, Redis and MLflow have TLS; the other two have it in `test_tls`. The services of `CONNECTED` have
the object store's credentials from a connection of Airflow's and the others from their environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import yaml

from tests.fleet.proxy import Proxy

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
POSTGRES = os.environ.get("JORA_FLEET_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
CONNECTED = ("api-server", "gpu-worker")
CONTROL = ("api-server", "scheduler", "dag-processor", "triggerer")
PASSWORD = secrets.token_hex(8)
_VARIABLE = re.compile(r"\$\{(\w+)(?::[?-]([^}]*))?\}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def missing() -> str:
    """What a fleet needs and this machine lacks, in a sentence; empty if it has all."""
    if not shutil.which("redis-server"):
        return "redis-server is not installed (apt-get install redis-server)"
    try:
        psycopg2.connect(POSTGRES, connect_timeout=5).close()
    except psycopg2.OperationalError:
        return "no PostgreSQL answers; start one on 127.0.0.1:5432 or name it in JORA_FLEET_POSTGRES"
    return ""


@dataclass
class Fleet:
    """A running fleet.

    Attributes:
      folder: of homes, logs and configuration.
      proxies: ``postgres``, ``redis`` and ``objects``.
      processes: service → its process, leader of a group of its own.
    """

    folder: Path
    ports: dict[str, int]
    proxies: dict[str, Proxy] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    _lasting: dict[str, tuple[list[str], dict[str, str]]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.ports['api-server']}"

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.folder / "tls" / "ca.pem"))

    def described(self, service: str) -> dict[str, Any]:
        """What the compose files say of a service."""
        plain, tls = (
            yaml.safe_load((DOCKER / name).read_text())["services"].get(service, {})
            for name in ("compose.yaml", "compose.tls.yaml")
        )
        return plain | tls | {"environment": plain.get("environment", {}) | tls.get("environment", {})}

    def command(self, service: str) -> list[str]:
        return [self._here(part, service) for part in self.described(service)["command"]]

    def environment(self, service: str) -> dict[str, str]:
        """What the service's container would have, with this machine's addresses and folders."""
        given = self.described(service)["environment"]
        # PostgreSQL is one that runs here, with or without TLS.
        left_out = ("PGSSL", "AWS_") if service in CONNECTED else ("PGSSL",)
        told = {
            name: self._here(str(value), service)
            for name, value in given.items()
            if not name.startswith(left_out)
        }
        if service in CONNECTED:
            told["JORA_ARTIFACTS_CONN_ID"] = "jora_artifacts"
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AIRFLOW", "JORA", "AWS", "MLFLOW", "OPENLINEAGE"))
        }
        home = self.folder / service
        (home / "airflow").mkdir(parents=True, exist_ok=True)
        own = {
            "AIRFLOW_HOME": str(home / "airflow"),
            "JORA_HOME": str(home / "jora"),
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.folder / "logs"),
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.ports["api-server"]),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
            # A lost worker is noticed soon; in the compose file it may be slow rather than lost.
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "40",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
        return inherited | told | own

    def start(self, service: str, name: str = "", extra: tuple[str, ...] = ()) -> None:
        """Start a service by its command in the compose file.

        Args:
          name: by which it is known here, where there are several of it.
          extra: further arguments.
        """
        name = name or service
        command = [*self.command(service), *extra]
        environment = self.environment(service)
        if name != service:
            environment |= {
                "AIRFLOW_HOME": str(self.folder / name / "airflow"),
                "JORA_HOME": str(self.folder / name / "jora"),
            }
        if self.described(service).get("restart") == "unless-stopped":
            self._lasting[name] = command, environment
        _start(self, name, command, environment)

    def revive(self) -> None:
        """Start again what ended though it should last."""
        for name, process in list(self.processes.items()):
            if name in self._lasting and process.poll() is not None:
                _start(self, name, *self._lasting[name])

    def run(self, service: str) -> None:
        """Run a service that ends by itself."""
        self.start(service)
        code = self.processes.pop(service).wait(300)
        assert code == 0, self.log(service)

    def kill(self, name: str) -> None:
        """End a service and all of its children by SIGKILL."""
        self._lasting.pop(name, None)
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log(self, name: str, lines: int = 30) -> str:
        text = (self.folder / f"{name}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _here(self, text: str, service: str) -> str:
        text = _VARIABLE.sub(lambda found: self.variables.get(found[1], found[2] or ""), text)
        postgres = urlsplit(POSTGRES)
        login = postgres.netloc.rpartition("@")[0] or "postgres"
        places = {
            f"jora:{self.variables['POSTGRES_PASSWORD']}@postgres:5432/": (
                f"{login}@127.0.0.1:{self.proxies['postgres'].port}/{self.variables['DATABASES']}_"
            ),
            "redis:6379": f"127.0.0.1:{self.proxies['redis'].port}",
            "objects:9000": f"127.0.0.1:{self.proxies['objects'].port}",
            "api-server:8080": f"127.0.0.1:{self.ports['api-server']}",
            "mlflow:5000": f"127.0.0.1:{self.ports['mlflow']}",
            "/opt/jora/dags": str(ROOT / "dags"),
            "/run/tls": str(self.folder / "tls"),
            "/etc/jora": str(self.folder / "config"),
            "/run/secrets/airflow_passwords": str(self.folder / "secrets" / "airflow_passwords.json"),
            "/var/lib/airflow": str(self.folder / service / "airflow"),
            "/var/lib/jora": str(self.folder / service / "jora"),
        }
        for there, here in places.items():
            text = text.replace(there, here)
        own = {
            "mlflow": {"0.0.0.0": "127.0.0.1", "5000": str(self.ports["mlflow"])},
            "redis": {"6379": str(self.ports["redis"])},
        }
        return own.get(service, {}).get(text, text)


@contextlib.contextmanager
def fleet(folder: Path, write_config: Callable[[Path], Path]) -> Iterator[Fleet]:
    """All services of a fleet without workers; everything is ended and removed afterwards.

    Args:
      write_config: fills a folder and returns the spec in it.
    """
    made = Fleet(folder, {service: free_port() for service in ("api-server", "mlflow", "redis")})
    made.variables = {
        name: secrets.token_hex(16)
        for name in ("REDIS_PASSWORD", "OBJECTS_SECRET", "JWT_SECRET", "PAGES_SECRET", "POSTGRES_PASSWORD")
    }
    made.variables["FERNET_KEY"] = _fernet_key()
    made.variables["DATABASES"] = f"fleet_{secrets.token_hex(4)}"
    config = folder / "config"
    config.mkdir()
    shutil.copyfile(write_config(config), config / "run.yaml")
    (folder / "secrets").mkdir()
    (folder / "secrets" / "airflow_passwords.json").write_text(json.dumps({"admin": PASSWORD}))
    subprocess.run(["sh", DOCKER / "certificates.sh", folder / "tls"], check=True, capture_output=True)
    with contextlib.ExitStack() as stack:
        stack.callback(_end, made)
        stack.enter_context(_databases(made))
        objects = free_port()
        _start(made, "objects", [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(objects)])
        server = urlsplit(POSTGRES)
        for name, port in (
            ("postgres", server.port or 5432),
            ("redis", made.ports["redis"]),
            ("objects", objects),
        ):
            made.proxies[name] = stack.enter_context(Proxy(port))
        start_redis(made)
        wait(lambda: _listens(objects) and _listens(made.ports["redis"]), 60, "the stores")
        made.run("buckets")
        made.run("migrate")
        made.start("mlflow")
        for service in CONTROL:
            made.start(service, extra=("--skip-serve-logs",) if service == "triggerer" else ())
        with _revived(made):
            yield made


def start_redis(made: Fleet) -> None:
    """Start the broker; what it held before, it holds again."""
    data = made.folder / "redis"
    data.mkdir(exist_ok=True)
    _start(made, "redis", [*made.command("redis"), "--bind", "127.0.0.1", "--dir", str(data)])


def wait(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """What the condition gives, as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.5)
    return found


def _start(made: Fleet, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
    with (made.folder / f"{name}.log").open("ab") as log:
        made.processes[name] = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )


@contextlib.contextmanager
def _revived(made: Fleet) -> Iterator[None]:
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(2):
            made.revive()

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def _end(made: Fleet) -> None:
    for process in made.processes.values():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + 15
    for name in list(made.processes):
        with contextlib.suppress(subprocess.TimeoutExpired):
            made.processes[name].wait(max(0.1, deadline - time.monotonic()))
        made.kill(name)


@contextlib.contextmanager
def _databases(made: Fleet) -> Iterator[None]:
    names = [f"{made.variables['DATABASES']}_{each}" for each in ("airflow", "mlflow")]
    connection = psycopg2.connect(POSTGRES)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            for name in names:
                cursor.execute(f"CREATE DATABASE {name}")
            yield
            for name in names:
                cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        connection.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _fernet_key() -> str:
    from cryptography.fernet import Fernet

    return Fernet.generate_key().decode()
