"""How a launch follows the pods of a Job, and which of them tells why all ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from jora_tasks.errors import InputError, OutOfMemory
from jora_tasks.launching import following
from jora_tasks.launching.cluster import Cluster as Api
from jora_tasks.launching.cluster import Pod, pod_of
from jora_tasks.launching.following import Failed, Following
from jora_tasks.launching.indexed_job import job_of, secret_of
from jora_tasks.launching.job_file import read_job
from jora_tasks.launching.member import STARTED, Ears
from tests.launching import cluster as kubernetes
from tests.launching.cluster import KUBERNETES, Cluster
from tests.launching.homes import wait

JOB = KUBERNETES / "training-job.yaml"

STATE = {"name": "base", "image": "", "imageID": "", "ready": False, "restartCount": 0}
UNSCHEDULED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/5 nodes"}
NOT_RUN = {"exitCode": 128, "reason": "StartError", "message": "exec:\nno such file\n"}


def container(**state: dict[str, Any]) -> dict[str, Any]:
    return {"phase": "Running", "containerStatuses": [STATE | {"state": state}]}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"phase": "Pending"}, (False, None, "")),
        ({"phase": "Pending", "conditions": [UNSCHEDULED]}, (False, None, "Unschedulable: 0/5 nodes")),
        (container(waiting={"reason": "ContainerCreating"}), (False, None, "")),
        (container(waiting={"reason": "ErrImagePull", "message": "no"}), (False, None, "ErrImagePull: no")),
        (container(running={}), (True, None, "")),
        (container(terminated={"exitCode": 137, "reason": "OOMKilled"}), (True, 137, "OOMKilled")),
        (container(terminated={"exitCode": 1, "reason": "Error"}), (True, 1, "")),
        (container(terminated=NOT_RUN), (True, 128, "StartError: exec: no such file")),
        # Nothing tells how its container ended: the run may go on elsewhere.
        ({"phase": "Failed", "reason": "Evicted", "message": "full"}, (False, 75, "Evicted: full")),
    ],
)
def test_a_pod_is_known_by_what_the_api_tells(status: dict[str, Any], expected: tuple[Any, ...]) -> None:
    from kubernetes.client import ApiClient

    index = {"batch.kubernetes.io/job-completion-index": "1"}
    told = {"metadata": {"name": "a", "annotations": index}, "spec": {"containers": []}, "status": status}
    read = ApiClient().deserialize(SimpleNamespace(data=json.dumps(told)), "V1Pod")
    assert pod_of(read, "base") == Pod("a", 1, "", *expected)


def follow(*arguments: str) -> None:
    """Follow a Job of the template, whose pods run a command of `jora`, to its end."""
    api = Api()
    job = job_of(read_job(JOB), "label", 7777, None)
    told = {"arguments": arguments, "spec": "", "folder": "/", "environment": {}}
    heard, say = os.pipe()
    try:
        api.create_secret(secret_of(job["metadata"]["name"], api.create(job), told))
        Following(api, job, Ears(os.fdopen(heard, "rb", 0))).to_the_end()
    finally:
        os.close(say)


@contextlib.contextmanager
def killed_at_once(cluster: Cluster, *reasons: str) -> Iterator[None]:
    """Kill the containers of both pods as soon as they run, for these reasons."""

    def kill() -> None:
        wait(lambda: len(cluster.pods) == 2 and all(pod.process for pod in cluster.pods), 30, "pods that run")
        for pod, pod.reason in zip(cluster.pods[:], reasons, strict=True):
            assert pod.process
            os.kill(pod.process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        killer.join()


def test_an_image_that_cannot_be_had_is_told_and_not_waited_for_for_ever(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "_START_SECONDS", 2.0)
    cluster.waiting = "ImagePullBackOff"
    with pytest.raises(InputError, match=r"cannot be started \(ImagePullBackOff\); correct the manifest"):
        follow("no-such")
    lines = capfd.readouterr().err.splitlines()
    assert (
        len(lines) == 2 and lines[1].startswith("[1] pod ") and lines[1].endswith("waits: ImagePullBackOff")
    )


def test_a_container_that_took_more_than_its_memory_is_told_as_such(cluster: Cluster) -> None:
    cluster.reason = "OOMKilled"
    with pytest.raises(OutOfMemory, match=r"took more memory than its limit; raise resources.limits.memory"):
        follow("no-such")


def test_memory_that_a_node_tells_of_late_is_why_all_ended(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_SETTLE_SECONDS", 30.0)  # which it ends before
    cluster.late = {1: 2.0}
    with (
        killed_at_once(cluster, "Error", "OOMKilled"),
        pytest.raises(OutOfMemory, match=r"process 1, .*took more memory"),
    ):
        follow("train", "--help")


def test_of_a_container_that_said_nothing_its_node_tells_why_it_ended(cluster: Cluster) -> None:
    cluster.message, reason = "it could not be located", "ContainerStatusUnknown"
    said = r"Process \d, pod .* was ended by SIGKILL: ContainerStatusUnknown: it could not be located"
    with killed_at_once(cluster, reason, reason), pytest.raises(Failed, match=said):
        follow("train", "--help")


def test_a_container_that_its_node_cannot_start_is_bad_input_told_in_the_nodes_words(
    cluster: Cluster,
) -> None:
    cluster.reason, cluster.message = "StartError", 'exec: "python": executable file not found in $PATH'
    with pytest.raises(InputError, match=r'cannot be started \(StartError: exec: "python": executable file'):
        follow("train", "--help")


def test_a_job_that_is_complete_has_ended_well_though_its_pods_are_gone(
    cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster.forgetful = True
    follow("train", "--help")
    assert capfd.readouterr().err.splitlines()[-1] == STARTED


def test_every_line_of_a_log_comes_once_also_where_a_clock_steps_back(cluster: Cluster) -> None:
    pod = kubernetes.Pod("job", 0, {"containers": [{"name": "base"}]}, {}, "pod")
    pod.process = subprocess.Popen(["true"])
    times = ("10.1Z a", "10.1Z b", "05Z c", "06Z d")
    pod.lines = [f"2026-01-01T00:00:{each}\n".encode() for each in times]
    pod.closed.set()
    cluster.pods.append(pod)
    lines: list[str] = []
    over = iter([False, False, True])  # of three connections, which all bring all
    Api().follow(Pod("pod", 0, "", True, None, ""), "base", lambda: next(over), lines.append)
    assert lines == ["a", "b", "c", "d"]


def test_a_training_that_ended_well_has_done_so_though_its_job_cannot_be_deleted(cluster: Cluster) -> None:
    cluster.withheld = {"jobs delete"}
    told = {"arguments": ["train", "--help"], "spec": "", "folder": "/", "environment": {}, "name": "a"}
    command = [sys.executable, "-m", "jora_tasks.launching.pods"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdin and running.stderr
        print(json.dumps(told), file=running.stdin, flush=True)
        said = running.stderr.read().splitlines()
        assert running.wait(10) == 0, said
    assert "is left to Kubernetes" in said[-1] and "does not let this account delete Jobs" in said[-1]
