from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from jora_tasks.airflow import local
from jora_tasks.airflow.job import MARK, Job, JobBusy, TakenOver, jobs
from jora_tasks.airflow.keeper import UNWATCHED
from jora_tasks.airflow.processes import marked

Script = Callable[[str], tuple[str, ...]]

COUNTING = """
import signal, sys, time
def save(number, frame):
    print("saved", file=sys.stderr, flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
for step in range(600):
    print(f"step {step}", file=sys.stderr, flush=True)
    time.sleep(0.05)
print("result")
"""
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path / "home" / "runs" / "dag" / "run" / "jobs" / "train")
    yield made
    made.stop(grace=0)


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def log(job: Job) -> str:
    file = job.folder / "log"
    return file.read_text() if file.exists() else ""  # its lock is held before there is one


def processes(job: Job) -> list[psutil.Process]:
    return marked(MARK, str(job.folder))


def keeper(job: Job) -> psutil.Process:
    """The one of the job's processes whose parent is none of them."""
    members = {process.pid: process for process in processes(job)}
    return next(process for process in members.values() if process.ppid() not in members)


def test_a_job_is_followed_from_its_first_line_to_its_result(job: Job, script: Script):
    lines: list[str] = []
    command = script("import sys; print('a\\n\\nb', file=sys.stderr); print('result'); sys.exit(3)")
    for number in range(2):  # a second start shows its own lines alone
        job.start(command, os.environ, job.folder, str(number))
        outcome = job.follow(str(number), lines.append, lambda: False)
        assert (outcome.code, outcome.stdout, outcome.last_line) == (3, "result\n", "b")
    assert lines == ["a", "b", "a", "b"]
    assert not job.alive()


def test_a_job_survives_who_started_it_and_is_taken_up(job: Job, script: Script, tmp_path: Path):
    source = (
        "import json, os, pathlib, sys\n"
        "from jora_tasks.airflow.job import Job\n"
        "job = Job(pathlib.Path(sys.argv[1]))\n"
        "job.start(json.loads(sys.argv[2]), os.environ, pathlib.Path('.'), 'first')\n"
        "job.follow('first', print, lambda: False)\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", source, str(job.folder), json.dumps(script(COUNTING))])
    wait_for(lambda: job.alive() and "step 2" in log(job))
    starter.kill()
    starter.wait()
    seen = log(job).count("step")
    wait_for(lambda: log(job).count("step") > seen)
    with pytest.raises(JobBusy):
        job.start(script(COUNTING), os.environ, job.folder)

    lines: list[str] = []
    follower = threading.Thread(target=lambda: job.follow("second", lines.append, lambda: False))
    follower.start()
    wait_for(lambda: "step 2" in lines)
    job.ask_to_stop()
    follower.join()
    assert lines[0] == "step 0" and lines[-1] == "saved"
    assert (job.exit_code(), job.alive(), processes(job)) == (75, False, [])
    assert json.loads((job.folder / "exit.json").read_text())["stopped"] == "the task was told to stop"


def test_the_earlier_follower_learns_that_it_is_not_the_last(job: Job, script: Script):
    job.start(script(COUNTING), os.environ, job.folder, "second")
    with pytest.raises(TakenOver):
        job.follow("first", lambda line: (job.folder / "watched").write_text("second"), lambda: False)
    assert job.alive()


def test_a_job_that_no_one_follows_ends_saved(job: Job, script: Script):
    job.start(script(COUNTING), os.environ | {UNWATCHED: "1.5"}, job.folder)
    wait_for(lambda: job.exit_code() is not None)
    assert job.exit_code() == 75
    assert "no task has followed this job for 2 s" in log(job)


def test_a_clock_that_jumps_neither_ends_a_job_nor_lets_it_go_on_unwatched(job: Job, script: Script):
    job.start(script(COUNTING), os.environ | {UNWATCHED: "1.5"}, job.folder)
    for years in (-1, 1, -1, 0, 1, -2):  # for longer than it may be unwatched
        moment = time.time() + years * 365 * 86400
        os.utime(job.folder / "watched", (moment, moment))
        time.sleep(0.5)
    assert job.exit_code() is None and job.alive()
    wait_for(lambda: job.exit_code() == 75)


def test_what_does_not_hear_sigterm_is_killed_within_fifteen_seconds(job: Job, script: Script):
    job.start(script(DEAF), os.environ, job.folder)
    wait_for(lambda: len(processes(job)) == 2)
    time.sleep(0.5)
    started = time.monotonic()
    job.stop()
    assert time.monotonic() - started < 15
    assert (job.exit_code(), job.alive(), processes(job)) == (-9, False, [])


def test_a_killed_keeper_takes_the_command_along_saved(job: Job, script: Script):
    job.start(script(COUNTING), os.environ, job.folder)
    wait_for(lambda: "step 1" in log(job))
    keeper(job).kill()
    wait_for(lambda: not job.alive())
    assert log(job).endswith("saved\n")
    assert job.exit_code() is None
    assert job.follow("next", lambda line: None, lambda: False).code == -1


def test_a_killed_command_is_told_with_its_signal(job: Job, script: Script):
    job.start(script(COUNTING), os.environ, job.folder)
    wait_for(lambda: "step 1" in log(job))
    for process in keeper(job).children():
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: not job.alive())
    assert job.exit_code() == -9


def test_down_ends_the_jobs_of_its_home_and_no_others(job: Job, script: Script, tmp_path: Path):
    other = Job(tmp_path / "other" / "runs" / "dag" / "run" / "jobs" / "train")
    try:
        for each in (job, other):
            each.start(script(COUNTING), os.environ, each.folder)
        wait_for(lambda: "step 1" in log(job))
        assert jobs(tmp_path / "home") == [job]
        assert local.stop(tmp_path / "home") is True
        assert (job.alive(), job.exit_code(), other.alive()) == (False, 75, True)
        assert local.stop(tmp_path / "home") is False
    finally:
        other.stop(grace=0)
