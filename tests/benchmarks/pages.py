"""What the pages cost with ten thousand of everything.

    python -m tests.benchmarks.pages [--records 10000] [--shared]

Generates that many versions of one line, documents of one corpus, runs in Airflow and steps of one run's
training, asks Airflow's own app for each page, and prints one JSON object: page → seconds (median of five,
after one to warm up), kilobytes, SQL statements of the request, seconds and CPU seconds of the first look.
With ``--shared`` costs are those of four machines that share them in an S3 server on loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec

from jora_tasks.airflow.runs import progress_file, run_folder
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.costs import month_file, share
from jora_tasks.progress import Event, FileSink
from jora_tasks.stages.pipeline import STAGES

TRIES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--shared", action="store_true")
    given = parser.parse_args()
    records = given.records
    with tempfile.TemporaryDirectory() as folder:
        prepare_environment(Path(folder))
        with objects() if given.shared else contextlib.nullcontext(""):
            print(json.dumps({"records": records, **measure(Path(folder), records)}, indent=2))


@contextlib.contextmanager
def objects() -> Iterator[None]:
    """An S3 server, a process of its own, that machines share."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "worker",
        "AWS_SECRET_ACCESS_KEY": "of-the-worker",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "JORA_ARTIFACTS": "s3://fleet/shared",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        system = fsspec.filesystem("s3")
        while True:
            with contextlib.suppress(Exception):
                system.makedirs("fleet", exist_ok=True)
                break
            time.sleep(0.2)
        yield
    finally:
        server.terminate()
        server.wait()


def prepare_environment(folder: Path) -> None:
    """Set before anything imports Airflow."""
    os.environ |= {
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder}/airflow/airflow.db",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "JORA_HOME": str(folder / "home"),
    }
    (folder / "airflow").mkdir()


def measure(folder: Path, records: int) -> dict[str, Any]:
    """Page → what it cost."""
    from airflow.api_fastapi.app import create_app
    from airflow.utils.db import initdb
    from fastapi.testclient import TestClient

    from jora_tasks.registry import Registry
    from tests.lines import make_line

    initdb()
    store = ArtifactStore(folder / "home")
    make_line(store, versions=3, documents=records)
    Registry(store.home).promote("tiny", 1, by="benchmark", reason="the first")
    add_versions(store.home / "mlflow" / "mlflow.db", records)
    add_runs(folder / "airflow" / "airflow.db", records)
    write_progress(store, f"manual__{records}", records)
    write_costs(store, records)
    corpus = store.latest("tiny", "corpus").key
    pages = {
        "lines": "/adapters",
        "line": "/adapters/tiny",
        "version": f"/adapters/tiny/versions/{records}",
        "promote": f"/adapters/tiny/versions/{records}/promote",
        "documents": f"/artifacts/corpus/{corpus}/documents",
        "documents, searched": f"/artifacts/corpus/{corpus}/documents?search=0099",
        "costs": "/costs",
        "lineage of a run": f"/lineage?dag_id=adapter_training&run_id=manual__{records}",
    }
    client = TestClient(create_app(apps="core"), base_url="http://127.0.0.1")
    statements = count_statements()
    costs = {}
    for name, path in pages.items():
        seconds, used = [], time.process_time()
        for number in range(TRIES + 1):
            statements.clear()
            started = time.perf_counter()
            answer = client.get(f"/jora{path}")
            seconds.append(time.perf_counter() - started)
            assert answer.status_code == 200, (path, answer.text)
            if number == 0:
                used = time.process_time() - used
        costs[name] = {
            "seconds": round(statistics.median(seconds[1:]), 3),
            "first_seconds": round(seconds[0], 3),
            "first_cpu_seconds": round(used, 3),
            "kilobytes": round(len(answer.content) / 1000, 1),
            "statements": len(statements),
        }
    return costs


def write_progress(store: ArtifactStore, run_id: str, steps: int) -> None:
    """What the stages of a run with so many training steps wrote."""
    file = progress_file(run_folder(store.home, "adapter_training", run_id))
    sink = FileSink(file)
    for step in range(steps):
        sink(Event("train", done=step, total=steps, unit="steps", fields={"loss": 1.0}))
    for stage in STAGES.values():
        if stage.kind:
            key = store.latest("tiny", stage.kind).key
            sink(Event(stage.name, "built", fields={"seconds": 1.0, "key": key}))
    sink(Event("register", "built", fields={"name": "tiny", "version": 3, "alias": "candidate"}))


def write_costs(store: ArtifactStore, runs: int) -> None:
    """Records of this month, of each stage of so many runs: in the home, or shared by four machines."""
    month = datetime.now(UTC).strftime("%Y-%m")
    if store.shared is None:
        write_records(month_file(store.home, month), month, range(1, runs + 1))
        return
    for machine in range(4):
        home, mine = store.home.with_name(f"machine {machine}"), range(1 + machine, runs + 1, 4)
        for first in range(0, len(mine), 80):  # a piece is full by then
            write_records(month_file(home, month), month, mine[first : first + 80])
            share(home, store.shared)


def write_records(file: Path, month: str, runs: Sequence[int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    took = {"seconds": 1.0, "device_seconds": 1.0, "read": 1, "written": 1, "sent": 1, "fetched": 1}
    with file.open("a") as lines:
        for run in runs:
            for stage in STAGES:
                told = {"stage": stage, "line": "tiny", "run": f"adapter_training/manual__{run}"}
                ends = {"id": f"{run}-{stage}", "state": "built", "ended": f"{month}-01T00:00:00Z"}
                lines.write(json.dumps({**told, **ends, **took, "hits": 0, "misses": 1}) + "\n")


def count_statements() -> list[str]:
    """A list to which every SQL statement of this process is added from now on."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    statements: list[str] = []
    event.listen(Engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    return statements


def add_versions(database: Path, count: int) -> None:
    """Copy the registry's third version, with its run and figures, until there are ``count``."""
    import sqlite3

    with sqlite3.connect(database) as sql:
        run_id = sql.execute("select run_id from model_versions where name='tiny' and version=3").fetchone()[
            0
        ]
        new = [(number, f"{number:032x}") for number in range(4, count + 1)]
        for table, key, keep in (
            ("runs", "run_uuid", run_id),
            ("latest_metrics", "run_uuid", run_id),
            ("tags", "run_uuid", run_id),
        ):
            copy_rows(sql, table, {key: keep}, [{key: made} for _, made in new])
        third = {"name": "tiny", "version": 3}
        copy_rows(sql, "model_versions", third, [{"version": n, "run_id": made} for n, made in new])
        copy_rows(sql, "model_version_tags", third, [{"version": n} for n, _ in new])


def add_runs(database: Path, count: int) -> None:
    """Finished runs of `adapter_training`."""
    import sqlite3

    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    with create_session() as session:
        facts = {"run_type": "manual", "state": "success", "run_after": datetime.now(UTC)}
        session.add(DagRun(dag_id="adapter_training", run_id="manual__1", **facts))
    with sqlite3.connect(database) as sql:
        new = [{"run_id": f"manual__{number}", "id": number + 1} for number in range(2, count + 1)]
        copy_rows(sql, "dag_run", {"run_id": "manual__1"}, new)


def copy_rows(sql: Any, table: str, where: dict[str, Any], changes: list[dict[str, Any]]) -> None:
    """Insert the rows of a table that match, once for each change."""
    columns = [row[1] for row in sql.execute(f"pragma table_info({table})")]
    condition = " and ".join(f"{name} = ?" for name in where)
    rows = sql.execute(f"select * from {table} where {condition}", list(where.values())).fetchall()
    made = [
        [change.get(name, value) for name, value in zip(columns, row, strict=True)]
        for change in changes
        for row in rows
    ]
    sql.executemany(f"insert into {table} values ({', '.join('?' * len(columns))})", made)


if __name__ == "__main__":
    main()
