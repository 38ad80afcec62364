"""Training that one command starts as the pods of a Kubernetes Job, in a cluster that is only its API."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from jora_tasks.airflow.job import Job as TaskJob
from jora_tasks.costs import parse
from jora_tasks.launching.indexed_job import LABEL
from tests.launching.cluster import KUBERNETES, TOKEN, Cluster
from tests.launching.homes import MESH, SECRET, Home, wait

JOB = KUBERNETES / "training-job.yaml"


def in_the_middle(cluster: Cluster, running: subprocess.Popen[str]) -> None:
    """Both processes have told of updates, and a checkpoint of theirs is shared."""
    work = Path(cluster.settings["jora-settings"]["JORA_ARTIFACTS"].removeprefix("file://"), "work")
    before = {file: file.stat().st_mtime_ns for file in work.rglob("*") if file.is_file()}

    def shared() -> bool:
        return any(before.get(file) != file.stat().st_mtime_ns for file in work.rglob("*") if file.is_file())

    wait(lambda: running.poll() is not None or shared(), 240, "a shared checkpoint")
    assert running.poll() is None, running.communicate()


def updates(home: Home) -> list[int]:
    """The updates that the first process told of, of all tries."""
    [log] = home.folder.glob("logs/train/*/process-0.log")
    told = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("train ")]
    return [int(each.split("/")[0]) for each in told if "/" in each]


def kill_task(running: subprocess.Popen[str]) -> None:
    """What is left of a task whose pod is gone: nothing that could end the Job."""
    for each in [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]:
        with contextlib.suppress(psutil.Error):
            each.kill()
    running.communicate()


@pytest.mark.slow
def test_one_command_trains_in_pods_what_two_processes_do(
    cluster: Cluster, together: Home, make_home: Callable[[], Home]
) -> None:
    """A container that is killed ends all; a Job whose task was lost is ended by the next, which goes on."""
    home = make_home()
    running = home.train(*MESH, JORA_POD_NAME="task", JORA_POD_UID="1234", JORA_AIRFLOW_RUN="dag/run")
    in_the_middle(cluster, running)
    os.kill(cluster.pod(1).process.pid, signal.SIGKILL)
    said = running.communicate(timeout=100)[1]
    assert running.returncode == 1
    last = said.splitlines()[-1]
    assert (
        last.startswith("jora: Process 1, pod jora-training-") and "on node-1, was ended by SIGKILL" in last
    )
    wait(lambda: not cluster.jobs and not cluster.pods, 90, "the end of a Job that has failed")

    running = home.train(*MESH, JORA_AIRFLOW_RUN="dag/run")
    in_the_middle(cluster, running)
    kill_task(running)
    time.sleep(1)
    assert len(cluster.jobs) == 1 and all(pod.code is None for pod in cluster.pods)

    running = home.train(*MESH, JORA_AIRFLOW_RUN="dag/run")
    said = running.communicate(timeout=400)[1]
    assert running.returncode == 0, said
    assert f"deleting Job {cluster.written[2][1]['metadata']['name']} of an earlier try" in said
    assert cluster.most == 2
    assert home.losses() == together.losses()
    wait(lambda: not cluster.jobs and not cluster.pods, 30, "the end of the Job")
    assert updates(home).count(1) == 1  # no try began anew
    [logs] = (home.folder / "logs" / "train").iterdir()
    assert {file.name for file in logs.iterdir()} == {"launcher.log", "process-0.log", "process-1.log"}

    shared = Path(cluster.settings["jora-settings"]["JORA_ARTIFACTS"].removeprefix("file://"))
    lines = [line for file in (shared / "costs").rglob("*.jsonl") for line in file.open("rb")]
    ended = [cost for line in lines if (cost := parse(line)) and cost.state == "built"]
    assert [(cost.stage, cost.run) for cost in ended] == [("train", "dag/run")]  # the pod's, which is gone

    jobs = [body for path, body in cluster.written if path.endswith("/jobs")]
    secrets = [body for path, body in cluster.written if path.endswith("/secrets")]
    assert len({job["metadata"]["name"] for job in jobs}) == len(jobs) == 3
    assert len({job["metadata"]["labels"][LABEL] for job in jobs}) == 1
    [owner] = jobs[0]["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("Pod", "task", "1234")
    assert SECRET not in json.dumps(jobs)
    told = base64.b64decode(secrets[0]["data"]["told.json"]).decode()
    assert SECRET in told and TOKEN not in told
    files = [file for file in home.folder.rglob("*") if file.is_file()]
    assert not [file for file in files if SECRET in file.read_text("latin-1")]
    assert not set(cluster.settings) - {"jora-settings", "jora-objects", "jora-run"}


@pytest.mark.slow
def test_a_job_that_is_stopped_saves_and_one_is_not_by_an_api_that_is_away(
    cluster: Cluster, make_home: Callable[[], Home]
) -> None:
    home = make_home()
    running = home.train(*MESH)
    in_the_middle(cluster, running)
    cluster.away = True
    time.sleep(5)
    cluster.away, cluster.withheld = False, {"pods list", "pods/log get"}
    time.sleep(3)
    cluster.withheld = set()
    in_the_middle(cluster, running)
    running.terminate()
    said = running.communicate(timeout=90)[1]
    assert running.returncode == 75, said
    assert said.splitlines()[-1].startswith("jora: stopped by SIGTERM: saved at update ")
    wait(lambda: not cluster.jobs, 10, "the end of the Job")

    running = home.train(*MESH)
    in_the_middle(cluster, running)
    [name] = cluster.jobs
    cluster.delete(name)  # as kubectl would
    said = running.communicate(timeout=90)[1]
    assert running.returncode == 75, said
    assert said.splitlines()[-1].startswith("jora: stopped by SIGTERM: saved at update ")
    told = updates(home)
    assert told.count(1) == 1 and len(told) == len(set(told))  # of the first try every line came once


@pytest.mark.slow
def test_the_job_of_an_airflow_task_that_is_told_to_stop_is_gone_and_saved(
    cluster: Cluster, make_home: Callable[[], Home], tmp_path: Path
) -> None:
    """As where the task is marked failed: its keeper gives the command eight seconds."""
    home, kept = make_home(), TaskJob(tmp_path / "job")
    command = [sys.executable, "-m", "jora_tasks.cli", "train", "--json", "--spec", str(home.spec)]
    environment = {**os.environ, "JORA_HOME": str(home.folder), "JORA_PROCESS_LOGS": str(kept.folder)}
    kept.start([*command, "--prompts", home.prompts, *MESH], environment, Path.cwd())
    wait(lambda: (cluster.pods and steps(cluster) > 3) or not kept.alive(), 240, "updates")
    kept.ask_to_stop()
    wait(lambda: not kept.alive(), 20, "the end of the task's job")
    assert kept.exit_code() == 75, (kept.folder / "log").read_text()
    assert "saved at update" in (kept.folder / "process-0.log").read_text()
    wait(lambda: not cluster.jobs and not cluster.pods, 10, "the end of the Job")


def steps(cluster: Cluster) -> int:
    """How many lines tell of updates."""
    return sum(b" steps, " in line for pod in cluster.pods for line in pod.lines)


@pytest.mark.slow
def test_bad_input_of_the_pods_is_told_in_their_words(
    cluster: Cluster, make_home: Callable[[], Home]
) -> None:
    running = make_home().train("--set", "training.batch_size=3", *MESH)
    said = running.communicate(timeout=100)[1]
    assert running.returncode == 2
    assert said.splitlines()[-1].startswith("jora: training.batch_size 3 does not split over data x fsdp = 4")


@pytest.mark.parametrize(
    ("withheld", "said"),
    [
        ("jobs list", "does not let this account list Jobs in namespace jora"),
        ("jobs create", "does not let this account create Jobs in namespace jora"),
        ("secrets create", "does not let this account create Secrets in namespace jora"),
        ("pods list", "does not let this account list pods in namespace jora"),
        ("pods/log get", "does not let this account get pods/log in namespace jora"),
    ],
)
def test_a_right_that_is_lacking_is_named(
    withheld: str, said: str, cluster: Cluster, make_home: Callable[[], Home]
) -> None:
    cluster.withheld = {withheld}
    running = make_home().train()
    told = running.communicate(timeout=60)[1]
    last = told.splitlines()[-1]
    assert running.returncode == 2 and said in last and "training-setup.yaml" in last, told
    wait(lambda: not cluster.jobs, 30, "the end of what was made")


def test_an_api_that_is_away_is_tried_again_later(
    cluster: Cluster, make_home: Callable[[], Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.away = True
    home = make_home()
    for said in ("cannot list Jobs in namespace jora now", "does not answer"):
        running = home.train()
        last = running.communicate(timeout=60)[1].splitlines()[-1]
        assert running.returncode == 1 and said in last
        config = cluster.kubeconfig.read_text()
        cluster.kubeconfig.write_text(config.replace(config.split("127.0.0.1:")[1].split()[0], "1"))
