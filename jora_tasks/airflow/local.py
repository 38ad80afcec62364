"""Start, find and stop a local Airflow: real, without Docker or root, and on loopback only.

Its state lies in ``$JORA_HOME/airflow``: database, logs, and ``local.json``, by which a later
command finds it. It has a session of its own, so Ctrl-C in the terminal does not reach it; whoever
starts it stops it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import httpx
import psutil

import jora_tasks
from jora_tasks.airflow.client import AirflowApiError, AirflowClient
from jora_tasks.airflow.environment import (
    GPU_POOL,
    LOOPBACK,
    OWNER,
    airflow_environment,
    airflow_home,
    events_file,
)
from jora_tasks.airflow.job import jobs
from jora_tasks.airflow.ports import choose_port, claimed, wait_until_free
from jora_tasks.airflow.processes import birth, end, is_same, members, signal_group
from jora_tasks.errors import InputError
from jora_tasks.spec import load_spec
from jora_tasks.writing import write_text

DAG_IDS = ("document_index", "adapter_training")
DEFAULT_LOG_PORTS = (8793, 8794)
START_SECONDS = 300.0
STOP_SECONDS = 25.0

Report = Callable[[str], None]


class AirflowStartError(RuntimeError):
    """Airflow did not become ready; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class LocalAirflow:
    """A running local Airflow.

    Attributes:
      home: JORA_HOME.
      pid: leader of its session.
      born: the leader's birth, a guard against reused ids.
      started: when, in seconds since 1970.
      port: of pages and API, on loopback.
      url: where the pages are.
      version: of Airflow.
      spec: the spec file that the trigger forms start from, or None.
      dags_folder: folder of its DAG files.
    """

    home: str
    pid: int
    born: str
    started: float
    port: int
    url: str
    version: str
    spec: str | None
    dags_folder: str

    def client(self) -> AirflowClient:
        return AirflowClient(self.url)


def state_file(home: Path) -> Path:
    return airflow_home(home) / "local.json"


def log_file(home: Path) -> Path:
    """What the components of the last start printed."""
    return airflow_home(home) / "airflow.log"


def running(home: str | Path) -> LocalAirflow | None:
    """The Airflow that runs for this home, or None."""
    local = _last(Path(home).resolve())
    return local if local and is_same(local.pid, local.born) else None


def start(
    home: str | Path,
    spec_path: str | Path | None,
    port: int | None = None,
    dags_folder: str | Path | None = None,
    *,
    report: Report | None = None,
    timeout: float = START_SECONDS,
) -> LocalAirflow:
    """Start Airflow for this home and wait until it can run the DAGs; reuse one that runs already.

    Args:
      home: JORA_HOME.
      spec_path: spec that the trigger forms start from; None for the embedded default.
      port: of the pages; by default 8080, or a free one if that is taken.
      dags_folder: by default this project's.
      report: called with a sentence whenever something becomes ready.
      timeout: seconds until giving up.

    Raises:
      InputError: the port is taken or out of range, the spec is bad, or an Airflow with another port,
        spec or folder of DAGs runs for this home.
      AirflowStartError: it ended early, cannot read a DAG, or is not ready in time. Nothing runs then.
    """
    home = Path(home).resolve()
    report = report or (lambda _: None)
    load_spec(spec_path)
    spec = None if spec_path is None else Path(spec_path).resolve()
    folder = Path(dags_folder).resolve() if dags_folder else Path(jora_tasks.__file__).parent.parent / "dags"
    with _alone(home), contextlib.ExitStack() as claim:
        local = running(home)
        if local is not None:
            _refuse_other(local, port, spec, folder)
            report(f"Airflow {local.version} runs already at {local.url}")
        else:
            _sweep(home)
            local = _launch(home, spec, folder, claim.enter_context(claimed(port)), report)
        try:
            _wait_until_ready(local, report, time.monotonic() + timeout)
        except BaseException:  # Ctrl-C too: what has no one to stop it must not stay
            _stop(local)
            raise
    return local


def stop(home: str | Path, grace: float = STOP_SECONDS) -> bool:
    """Stop the Airflow of this home, its tasks and their trainers, saved; whether there was one.

    Args:
      home: JORA_HOME.
      grace: seconds to end by themselves before they are killed.

    Raises:
      RuntimeError: if a process is left even after SIGKILL; names it.
    """
    home = Path(home).resolve()
    left = jobs(home)
    for job in left:
        job.ask_to_stop()  # all at once, before anything else takes their time
    local = _last(home)
    stopped = local is not None and _stop(local, grace)
    for job in jobs(home):
        if job not in left:  # started since they were counted
            job.ask_to_stop()
            left.append(job)
    for job in left:
        job.stop()
    return stopped or bool(left)


def _launch(home: Path, spec: Path | None, folder: Path, port: int, report: Report) -> LocalAirflow:
    airflow_home(home).mkdir(parents=True, exist_ok=True)
    airflow_home(home).chmod(0o700)  # Airflow keeps its signing keys there
    events_file(home).parent.mkdir(parents=True, exist_ok=True)
    first, second = (choose_port(None, default) for default in DEFAULT_LOG_PORTS)
    environment = airflow_environment(
        home, spec_path=spec, dags_folder=folder, port=port, log_ports=(first, second)
    )
    airflow = version("apache-airflow")
    report(f"Starting Airflow {airflow} on port {port}")
    with log_file(home).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jora_tasks.airflow.components"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=airflow_home(home),
            env=environment,
            start_new_session=True,
        )
    local = LocalAirflow(
        home=str(home),
        pid=process.pid,
        born=birth(process.pid),
        started=time.time(),
        port=port,
        url=f"http://{LOOPBACK}:{port}",
        version=airflow,
        spec=None if spec is None else str(spec),
        dags_folder=str(folder),
    )
    write_text(state_file(home), json.dumps(asdict(local), indent=2) + "\n")
    return local


def _wait_until_ready(local: LocalAirflow, report: Report, deadline: float) -> None:
    """Until health is good, both DAGs are read after the start, and none has an error."""
    waiting_for = ["API server", "scheduler", "DAG processor", "DAGs"]

    def ready(name: str) -> None:
        if name in waiting_for:
            waiting_for.remove(name)
            report(f"{name} ready")

    pool = False
    with local.client() as client:
        while waiting_for:
            if not is_same(local.pid, local.born):
                raise AirflowStartError(f"Airflow ended while it was starting.\n{_log_tail(local)}")
            if time.monotonic() > deadline:
                raise AirflowStartError(
                    f"Airflow is not ready in time; missing: {', '.join(waiting_for)}.\n{_log_tail(local)}"
                )
            try:
                if "API server" in waiting_for:
                    client.health()
                    # Another server on this port could answer as well: look whether it is ours.
                    if not _listens(local):
                        time.sleep(0.5)
                        continue
                    ready("API server")
                if not pool:
                    client.ensure_pool(GPU_POOL, 1, "Training and answering, one at a time")
                    pool = True
                health = client.health()
                if health["metadatabase"]["status"] == "healthy":
                    for part, name in (("scheduler", "scheduler"), ("dag_processor", "DAG processor")):
                        if health[part]["status"] == "healthy" and _recent(
                            health[part][f"latest_{part}_heartbeat"], local.started
                        ):
                            ready(name)
                if _dags_read(client, local.started):
                    ready("DAGs")
            except (httpx.TransportError, httpx.HTTPStatusError):
                pass
            except AirflowApiError as error:
                if error.status < 500:
                    raise
            if waiting_for:
                time.sleep(0.5)


def _dags_read(client: AirflowClient, started: float) -> bool:
    errors = [error for error in client.import_errors() if _recent(error["timestamp"], started)]
    if errors:
        raise AirflowStartError(
            f"Airflow cannot read {errors[0]['filename']}:\n{errors[0]['stack_trace'].strip()}"
        )
    dags = [client.dag(dag_id) for dag_id in DAG_IDS]
    return all(dag is not None and _recent(dag["last_parsed_time"], started) for dag in dags)


def _recent(moment: str | None, started: float) -> bool:
    """Whether an ISO 8601 moment is after the start: a database also holds what earlier starts left."""
    return bool(moment) and datetime.fromisoformat(str(moment)).timestamp() >= started - 1


def _listens(local: LocalAirflow) -> bool:
    for process in _members(local):
        with contextlib.suppress(psutil.Error):
            if any(
                connection.status == psutil.CONN_LISTEN and connection.laddr.port == local.port
                for connection in process.net_connections("tcp")
            ):
                return True
    return False


def _stop(local: LocalAirflow, grace: float = STOP_SECONDS) -> bool:
    found = bool(_members(local))
    if is_same(local.pid, local.born):
        signal_group(local.pid, signal.SIGTERM)
    else:
        grace = 0  # the leader is gone, so no one would end the rest in order
    left = end(lambda: _members(local), grace)
    if left:
        names = ", ".join(f"{process.pid} ({process.name()})" for process in left)
        raise RuntimeError(f"These processes of Airflow could not be ended: {names}.")
    state_file(Path(local.home)).unlink(missing_ok=True)
    return found


def _sweep(home: Path) -> None:
    """End what an Airflow left behind whose leader was killed; not its detached jobs, which tasks take up."""
    if (dead := _last(home)) is not None:
        _stop(dead)
        wait_until_free(dead.port)


def _members(local: LocalAirflow) -> list[psutil.Process]:
    return members(local.pid, local.born, (OWNER, str(airflow_home(Path(local.home)))))


def _last(home: Path) -> LocalAirflow | None:
    try:
        return LocalAirflow(**json.loads(state_file(home).read_text()))
    except (OSError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One start at a time for a home."""
    airflow_home(home).mkdir(parents=True, exist_ok=True)
    with (airflow_home(home) / "start.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"Airflow is being started for {home} already; wait for that, or give another JORA_HOME."
            ) from None
        os.set_inheritable(lock.fileno(), False)
        yield


def _refuse_other(local: LocalAirflow, port: int | None, spec: Path | None, folder: Path) -> None:
    for name, asked, has in (
        ("port", port or local.port, local.port),
        ("spec", None if spec is None else str(spec), local.spec),
        ("dags folder", str(folder), local.dags_folder),
    ):
        if asked != has:
            raise InputError(
                f"Airflow runs already for {local.home} with {name} {has}, not {asked}; "
                "stop it first with `jora down`."
            )


def _log_tail(local: LocalAirflow, lines: int = 20) -> str:
    log = log_file(Path(local.home))
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.is_file() else ""
