"""`jora prune` beside Airflow's own record of runs."""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import sqlite3
import time
from datetime import UTC, datetime

import pytest

from jora_tasks.airflow.runs import progress_file, run_folder
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.errors import RunStopped
from jora_tasks.retention import prune
from tests.airflow.conftest import HOME
from tests.lines import make_chain

DAG, RUN = "adapter_training", "manual__of_retention"
LATER = time.time() + 400 * 86400


def kinds(store: ArtifactStore) -> list[str]:
    gc.collect()
    done = prune(ArtifactStore(store.home), keep_days=7, champions_only=False, now=LATER, remove=True)
    return sorted(each.kind for each in done.removals)


def test_what_an_unfinished_run_has_made_stays_until_it_ends(airflow_db: None, registry_store: ArtifactStore):
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    home = registry_store.home
    adapter = make_chain(ArtifactStore(home), 1, 8, "tiny")[0].key
    shutil.rmtree(home / "latest")
    with create_session() as session:
        facts = {"run_type": "manual", "state": "running", "run_after": datetime.now(UTC)}
        session.add(DagRun(dag_id=DAG, run_id=RUN, **facts))
    (home / "airflow").mkdir()
    own, copy = (sqlite3.connect(folder / "airflow.db") for folder in (HOME, home / "airflow"))
    with contextlib.closing(own), contextlib.closing(copy):  # what lies in its journal too
        own.backup(copy)
    with create_session() as session:
        session.execute(delete(DagRun).where(DagRun.run_id == RUN))
    file = progress_file(run_folder(home, DAG, RUN))
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"stage": "train", "state": "built", "fields": {"key": adapter}}) + "\n")
    job = file.parent / "jobs" / "train"
    work = home / "work" / "adapter" / "0123456789abcdef"
    for folder in (job, work):
        folder.mkdir(parents=True)
        (folder / "job.json").write_text("{}")

    assert kinds(registry_store) == ["evaluation", "verdict"]  # the run has not come so far
    with contextlib.closing(sqlite3.connect(home / "airflow" / "airflow.db")) as sql, sql:
        sql.execute("update dag_run set state = 'success'")
    assert kinds(registry_store) == ["adapter", "contexts", "corpus", "index", "jobs", "prompts", "work"]

    (home / "airflow" / "airflow.db").write_text("no database")
    with pytest.raises(RunStopped, match="the runs of the local Airflow are not known"):
        kinds(registry_store)
