"""Starts all processes of a launch as the pods of a Job, and ends them together: what `srun` is in SLURM.

``python -m jora_tasks.launching.pods``; see `launcher`, to which it speaks as a `member` does. The pods'
lines come back on stderr, with their processes' numbers. It ends as the process that tells why all ended.

A Job that an earlier try left, killed with its pod, is deleted and its pods' end waited for before another is
made, so nothing is trained twice.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from jora_tasks.errors import InputError, Preempted, RunStopped
from jora_tasks.launching.book import WORDS
from jora_tasks.launching.cluster import Cluster
from jora_tasks.launching.following import Failed, Following, delete, say
from jora_tasks.launching.indexed_job import (
    DEFAULT_PORT,
    job_of,
    secret_of,
    training_label,
)
from jora_tasks.launching.job_file import read_job
from jora_tasks.launching.member import Ears, told_of
from jora_tasks.launching.settings import PORT, TRAINING_JOB

POD_NAME, POD_UID = "JORA_POD_NAME", "JORA_POD_UID"
"""The pod that this runs in, whose end is the Job's too."""

# Of this machine, which the pods do not have.
_PLACES = ("JORA_HOME", "JORA_PROGRESS", "JORA_PROCESS_LOGS", POD_NAME, POD_UID)
_GONE_SECONDS = 300.0
_POLL_SECONDS = 0.5


def main() -> None:
    """Run what the first line of stdin says, in pods; 128 + N where signal N ended one."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: None)  # the launcher says when to stop
    heard = open(0, "rb", buffering=0)  # noqa: SIM115 a thread reads it to the end
    try:
        _run(told_of(heard.readline()), Ears(heard))
    except (InputError, RunStopped) as error:
        say(f"{WORDS}{error}")
        sys.exit(error.code if isinstance(error, Failed) else error.exit_code)


def _run(told: dict[str, Any], ears: Ears) -> None:
    template = read_job(Path(os.environ[TRAINING_JOB]))
    cluster = Cluster((template.get("metadata") or {}).get("namespace"))
    variables: dict[str, str] = told["environment"]
    run = variables.get("JORA_AIRFLOW_RUN") or f"{socket.gethostname()}:{variables.get('JORA_HOME')}"
    label = training_label(told["name"], run)
    _end_earlier(cluster, label, ears)
    job = job_of(template, label, int(os.environ.get(PORT) or DEFAULT_PORT), _owner(cluster))
    name = job["metadata"]["name"]
    passed = {key: value for key, value in variables.items() if key not in _PLACES}
    try:
        uid = cluster.create(job)
        cluster.create_secret(secret_of(name, uid, told | {"environment": {}, "defaults": passed}))
        say(f"Job {name} in namespace {cluster.namespace} has {job['spec']['completions']} pods")
        Following(cluster, job, ears).to_the_end()
    finally:
        delete(cluster, name)  # else the next try does, or Kubernetes with this pod


def _owner(cluster: Cluster) -> dict[str, str] | None:
    """The pod that this runs in; an owner in another namespace would count as gone."""
    name, uid = os.environ.get(POD_NAME), os.environ.get(POD_UID)
    return {"name": name, "uid": uid} if name and uid and cluster.namespace == cluster.own else None


def _end_earlier(cluster: Cluster, label: str, ears: Ears) -> None:
    """Delete the Jobs of earlier tries of this training, and wait until their pods are gone."""
    since = time.monotonic()
    told: set[str] = set()
    while left := cluster.jobs(label):
        for name in set(left) - told:
            told.add(name)
            say(f"deleting Job {name} of an earlier try, whose processes save their state")
            cluster.delete(name)
        if ears.asked or ears.killed or ears.alone():
            raise Preempted("stopped by SIGTERM before its processes had started.")
        if time.monotonic() - since > _GONE_SECONDS:
            raise RunStopped(
                f"Job {left[0]} of an earlier try is not gone {_GONE_SECONDS:.0f} s after its deletion; see "
                "to the nodes of its pods, then run this again."
            )
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    main()
