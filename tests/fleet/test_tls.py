"""TLS to PostgreSQL, the object store and MLflow, by the commands and variables of compose.tls.yaml.

Each has a certificate that docker/certificates.sh made. PostgreSQL is a cluster of the test's own, which lets
no one in without TLS; moto stands for the object store.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import psycopg2
import pytest
import yaml

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.registry import Registry
from tests.fleet.topology import DOCKER, free_port, wait
from tests.registry.registering import make_adapter, register

pytestmark = pytest.mark.slow
PASSWORD = "planted-password-of-services"
PORTS = {"postgres": 5432, "objects": 9000, "mlflow": 5000}
OWN = ("AIRFLOW", "JORA", "AWS", "MLFLOW", "PG")


@dataclass
class Services:
    """What runs: databases, objects and MLflow.

    Attributes:
      folder: of their files; docker/certificates.sh made ``tls`` in it, and ``other``, of another authority.
      ports: by service.
    """

    folder: Path
    ports: Mapping[str, int]

    @property
    def other(self) -> str:
        return str(self.folder / "other" / "ca.pem")

    def described(self, service: str) -> dict[str, Any]:
        """What the compose files say of a service."""
        plain, tls = (
            yaml.safe_load((DOCKER / name).read_text())["services"].get(service, {})
            for name in ("compose.yaml", "compose.tls.yaml")
        )
        return plain | tls | {"environment": plain["environment"] | tls.get("environment", {})}

    def command(self, service: str) -> list[str]:
        command = self.described(service)["command"]
        own = {"0.0.0.0": "127.0.0.1", str(PORTS.get(service)): str(self.ports.get(service))}
        program = Path(sys.executable).with_name(command[0])
        return [
            str(program) if program.exists() else command[0],
            *(self._here(own.get(each, each)) for each in command[1:]),
        ]

    def environment(self, service: str, **changed: str) -> dict[str, str]:
        """What the service's container would have, with this machine's addresses and folders."""
        told = {
            name: self._here(str(value)) for name, value in self.described(service)["environment"].items()
        }
        # What the README says of an object store of one's own.
        store = {"AWS_ENDPOINT_URL": f"https://localhost:{self.ports['objects']}"}
        store["AWS_CA_BUNDLE"] = str(self.folder / "tls" / "ca.pem")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(OWN)}
        return inherited | told | store | {"AIRFLOW_HOME": str(self.folder / "airflow")} | changed

    def _here(self, text: str) -> str:
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
        text = re.sub(r"\$\{\w+[^}]*\}", PASSWORD, text)
        for service, port in PORTS.items():
            text = text.replace(f"{service}:{port}", f"localhost:{self.ports[service]}")
        return text.replace("/run/tls", str(self.folder / "tls"))


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    if not (programs := _postgres_programs()):
        lack = "PostgreSQL's initdb is not installed (apt-get install postgresql)"
        if os.environ.get("JORA_FLEET_REQUIRED"):
            pytest.fail(lack)
        pytest.skip(lack)
    made = Services(tmp_path_factory.mktemp("tls"), {service: free_port() for service in PORTS})
    for name in ("tls", "other"):
        command = ["sh", str(DOCKER / "certificates.sh"), str(made.folder / name)]
        subprocess.run(command, check=True, capture_output=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_postgres(made, programs))
        files = ["--ssl-cert", str(made.folder / "tls" / "server.pem"), "--ssl-key"]
        moto = [
            sys.executable,
            "-m",
            "moto.server",
            "--host",
            "127.0.0.1",
            "--port",
            str(made.ports["objects"]),
        ]
        key = str(made.folder / "tls" / "server.key")
        stack.enter_context(_running(made, "objects", [*moto, *files, key], dict(os.environ)))
        subprocess.run(made.command("buckets"), env=made.environment("buckets"), check=True)
        stack.enter_context(_running(made, "mlflow", made.command("mlflow"), made.environment("mlflow")))
        yield made


def _postgres_programs() -> Path | None:
    found = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=shutil.which("initdb"))
    return Path(found).parent if found else None


@contextlib.contextmanager
def _postgres(services: Services, programs: Path) -> Iterator[None]:
    """A server with compose.tls.yaml's command and the databases of the compose file."""
    # Not within pytest's folder, which is for its own user alone: PostgreSQL does not run as root.
    data = Path(tempfile.mkdtemp(prefix="jora-postgres-"))
    as_user = (
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    )
    try:
        (data / "password").write_text(PASSWORD)
        for file in ("ca.pem", "server.pem"):
            shutil.copy(services.folder / "tls" / file, data / file)
        for path in (data, *data.iterdir()) if as_user else ():
            shutil.chown(path, "postgres", "postgres")
        folder = str(data / "data")
        make = [
            "initdb",
            "--username=jora",
            "--auth=scram-sha-256",
            f"--pwfile={data / 'password'}",
            "--no-sync",
            folder,
        ]
        subprocess.run([*as_user, programs / make[0], *make[1:]], check=True, capture_output=True, cwd="/")
        (data / "data" / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        [shell, option, line] = services.described("postgres")["command"]
        here = {
            "/run/tls/server.key": str(services.folder / "tls" / "server.key"),
            "/run/tls": str(data),
            "/var/lib/postgresql": str(data),
            "-o postgres -g postgres": "-o postgres -g postgres" if as_user else "",
            "docker-entrypoint.sh postgres": shlex.join(
                [
                    *as_user,
                    str(programs / "postgres"),
                    "-D",
                    folder,
                    "-p",
                    str(services.ports["postgres"]),
                    "-c",
                    "listen_addresses=127.0.0.1",
                    "-c",
                    "unix_socket_directories=",
                    "-c",
                    "fsync=off",
                ]
            ),
        }
        for there, place in here.items():
            line = line.replace(there, place)
        with _running(services, "postgres", [shell, option, line], dict(os.environ)):
            connection = psycopg2.connect(_database(services, "postgres", sslmode="require"))
            connection.autocommit = True
            with contextlib.closing(connection), connection.cursor() as cursor:
                cursor.execute("CREATE DATABASE airflow")
                for statement in (DOCKER / "databases.sql").read_text().split(";"):
                    if statement.strip():
                        cursor.execute(statement)
            yield
    finally:
        shutil.rmtree(data, ignore_errors=True)


def _database(services: Services, name: str, **options: str) -> str:
    place = {"host": "localhost", "port": str(services.ports["postgres"]), "dbname": name}
    told = place | {"user": "jora", "password": PASSWORD} | options
    return " ".join(f"{key}={value}" for key, value in told.items())


@contextlib.contextmanager
def _running(
    services: Services, name: str, command: Sequence[str], environment: Mapping[str, str]
) -> Iterator[None]:
    """A server that answers on its port with TLS."""
    file = services.folder / f"{name}.log"
    with file.open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, cwd="/", start_new_session=True
        )
    try:

        def listens() -> bool:
            assert process.poll() is None, file.read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", services.ports[name])) == 0

        wait(listens, 120, name)
        yield
    finally:
        if name == "postgres":  # which frees what it shares with its children
            process.send_signal(signal.SIGQUIT)
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


ASYNC = """
import asyncio
from airflow import settings
from airflow.utils.session import create_session_async
from sqlalchemy import text

async def main():
    async with create_session_async() as session:
        print(await session.scalar(text("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")))
    await settings.async_engine.dispose()

asyncio.run(main())
"""


def test_airflow_reaches_a_database_that_speaks_tls_alone(services: Services) -> None:
    """By both of its drivers; and no database whose certificate is of another authority, or that has none."""
    with pytest.raises(psycopg2.OperationalError, match=r"no pg_hba.conf entry .* no encryption"):
        psycopg2.connect(_database(services, "airflow", sslmode="disable"))
    airflow, python = (str(Path(sys.executable).with_name(name)) for name in ("airflow", "python"))
    checks = ([airflow, "db", "check"], [python, "-c", ASYNC])
    for command in checks:
        done = subprocess.run(command, env=services.environment("scheduler"), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "TLSv1.3" in done.stdout.splitlines()
    for command in checks:
        environment = services.environment("scheduler", PGSSLROOTCERT=services.other)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode != 0
        assert re.search(r"(?i)certificate.verify.failed", (done.stdout + done.stderr)), done.stderr


@pytest.fixture
def worker(services: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    """This process has the variables of a worker."""
    for name in [name for name in os.environ if name.startswith(OWN)]:
        monkeypatch.delenv(name)
    for name, value in services.environment("worker").items():
        if name.startswith(("JORA", "AWS", "MLFLOW", "PG")):
            monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()  # they keep their connections
    yield services
    fsspec.filesystem("s3").clear_instance_cache()


def test_an_adapter_is_published_and_registered_by_tls(worker: Services, tmp_path: Path) -> None:
    """MLflow's server, too, keeps it by TLS alone, in PostgreSQL and the object store."""
    for service in PORTS:
        if service != "postgres":  # which speaks TLS only when asked to
            with (
                socket.create_connection(("127.0.0.1", worker.ports[service])) as plain,
                pytest.raises(ssl.SSLCertVerificationError),
            ):
                ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")
    made = make_adapter(ArtifactStore(tmp_path / "one"), seed=1)
    found = ArtifactStore(tmp_path / "two").find("adapter", made.key)
    assert found and found.digest == made.digest
    registry = Registry(tmp_path / "one")
    version = register(registry, made)
    [kept] = Registry(tmp_path / "two").versions("documents")
    assert (kept.version, kept.digest) == (version, made.digest)


def test_an_authority_that_is_not_known_is_named(
    worker: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", worker.other)
    with pytest.raises(InputError, match=r"has a certificate that is not trusted here .* in AWS_CA_BUNDLE"):
        make_adapter(ArtifactStore(tmp_path / "home"), seed=2)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", worker.other)
    with pytest.raises(InputError, match=r"not trusted here; .* in MLFLOW_TRACKING_SERVER_CERT_PATH"):
        Registry(tmp_path / "home").versions("documents")
