"""Follows a Job's pods to the end of all, which the first that fails brings about."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

from jora_tasks.errors import DiskFull, InputError, OutOfMemory, Preempted, RunStopped
from jora_tasks.launching.book import LastWords, labelled
from jora_tasks.launching.cluster import Away, Cluster, Pod
from jora_tasks.launching.endings import ended, error_of, rank, signalled
from jora_tasks.launching.indexed_job import container_of, grace_of
from jora_tasks.launching.job_file import Manifest
from jora_tasks.launching.member import STARTED, Ears
from jora_tasks.launching.settings import TRAINING_JOB

# Pods train on while the API is away, or lets no one in.
_AWAY_SECONDS = 900.0
_START_SECONDS = 300.0
_SLACK_SECONDS = 15.0
# Nodes tell of their pods' ends each in its time, and Kubernetes of those that others bring about as well.
_SETTLE_SECONDS = 5.0
_POLL_SECONDS = 0.5
# Why a container does not start on its node, which waiting seldom mends.
_UNSTARTABLE = ("ErrImage", "ImagePull", "InvalidImage", "CreateContainer", "RunContainer")
# Why a container that was started has ended, in its node's words: it never ran, or took too much.
_NOT_RUN, _KILLED_FOR_MEMORY = ("StartError", "ContainerCannotRun"), "OOMKilled"
# What tells why all ended whenever it is seen, by exit code; other codes may be what came of it.
_CAUSES = tuple(each.exit_code for each in (InputError, OutOfMemory, DiskFull))


def say(line: str) -> None:
    """A line for the launcher, if it is there."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"{line}\n".encode())


def delete(cluster: Cluster, job: str) -> bool:
    """Delete a Job, or say that the account may not; whether the API was there."""
    try:
        cluster.delete(job)
    except Away:
        return False
    except InputError as error:
        say(f"Job {job} is left to Kubernetes: {error}")
    return True


class Failed(RunStopped):
    """A process ended with a code that is none of `jora`'s own.

    Attributes:
      code: as a shell tells it, 128 + N for signal N.
    """

    def __init__(self, words: str, code: int) -> None:
        super().__init__(words)
        self.code = code


class Following:
    """The pods of a Job."""

    def __init__(self, cluster: Cluster, job: Manifest, ears: Ears) -> None:
        self._cluster, self._ears = cluster, ears
        self._name, self._container = str(job["metadata"]["name"]), container_of(job)
        self._count, self._grace = int(job["spec"]["completions"]), grace_of(job)
        self._pods: dict[int, Pod] = {}
        self._present: set[int] = set()
        self._over: str | None = None
        self._heard = time.monotonic()
        self._readers: dict[int, threading.Thread] = {}
        self._last = LastWords()
        self._told: set[tuple[int, str]] = set()
        self._stuck: dict[int, float] = {}
        self._refused: InputError | None = None

    def to_the_end(self) -> None:
        """Returns once all processes have ended well.

        Raises:
          RunStopped, InputError: as the process tells whose end was that of all; or if the launcher asks for
            it, the Job is deleted, or a container cannot be started.
        """
        first: Pod | None = None
        settled = deadline = 0.0
        while not self._ears.killed:
            self._look()
            if self._refused:
                raise self._refused
            codes = [pod.code for pod in self._pods.values() if pod.code is not None]
            if self._over == "" or codes == [0] * self._count:
                break
            if first or not deadline:
                first = self._cause(first)
            if first:
                settled = settled or time.monotonic() + _SETTLE_SECONDS
                known = len(codes) == self._count or _code(first) in _CAUSES
                over = known or time.monotonic() > settled
            else:
                over = bool(self._over)
            if not deadline:
                asked = self._ears.asked or self._ears.alone()
                if (asked or over) and delete(self._cluster, self._name):  # else it is asked again
                    deadline = time.monotonic() + self._grace + _SLACK_SECONDS
            elif time.monotonic() > deadline or all(
                self._pods[each].code is not None for each in self._present
            ):
                break
            time.sleep(_POLL_SECONDS)
        for reader in self._readers.values():
            reader.join(_SLACK_SECONDS)
        if first:
            raise self._error(first)
        if self._over == "":
            say(STARTED)  # which the log of a pod that is gone cannot tell any more
        elif [self._pods[each].code for each in self._pods] != [0] * self._count:
            raise self._stopped()

    def _cause(self, first: Pod | None) -> Pod | None:
        """The pod that tells why all end, after one that told so before."""
        failed = [pod for pod in self._pods.values() if pod.code]
        told = [pod for pod in failed if _code(pod) in _CAUSES]
        return min([first, *told] if first else failed, key=_rank, default=None)

    def _look(self) -> None:
        """Take in how the pods are, and read the log of each that has begun."""
        try:
            # In this order: of a Job that has failed the pods tell why.
            self._over = self._cluster.ended(self._name)
            pods = self._cluster.pods(self._name, self._container)
        except (Away, InputError) as error:
            # A right that was there may come again, as where an account's token is renewed.
            lasting = isinstance(error, InputError) and not self._pods
            if lasting or time.monotonic() - self._heard > _AWAY_SECONDS:
                raise
            return
        self._heard = time.monotonic()
        self._present = {pod.process for pod in pods}
        for pod in pods:
            self._pods[pod.process] = pod
            if pod.begun and pod.process not in self._readers:
                reader = threading.Thread(target=self._read, args=(pod,), daemon=True)
                self._readers[pod.process] = reader
                reader.start()
            if not pod.begun and pod.code is None:
                self._wait_for(pod)

    def _wait_for(self, pod: Pod) -> None:
        """Tell why a pod does not run yet.

        Raises:
          InputError: if its container could not be started for long.
        """
        if pod.reason and (pod.process, pod.reason) not in self._told:
            self._told.add((pod.process, pod.reason))
            say(f"[{pod.process}] pod {pod.name} waits: {pod.reason}")
        if not pod.reason.startswith(_UNSTARTABLE):
            self._stuck.pop(pod.process, None)
        elif time.monotonic() - self._stuck.setdefault(pod.process, time.monotonic()) > _START_SECONDS:
            raise InputError(
                f"{TRAINING_JOB}: pod {pod.name} cannot be started ({pod.reason}); correct the manifest."
            )

    def _read(self, pod: Pod) -> None:
        def report(line: str) -> None:
            if line.endswith(STARTED):  # for the launcher, which takes it from any of them
                say(line)
                return
            number, said = labelled(line)
            process = pod.process if number is None else number
            self._last.hear(said, process)
            say(f"[{process}] {said}")

        def over() -> bool:
            return self._pods[pod.process].code is not None or pod.process not in self._present

        try:
            self._cluster.follow(pod, self._container, over, report)
        except InputError as error:
            self._refused = error

    def _error(self, pod: Pod) -> InputError | RunStopped:
        """Why a process that failed by itself did."""
        code, said = _code(pod), self._last.of(pod.process)
        what = f"rocess {pod.process}, pod {pod.name}" + (f" on {pod.node}" if pod.node else "")
        if pod.reason.startswith(_KILLED_FOR_MEMORY):
            return OutOfMemory(
                f"p{what}, took more memory than its limit; raise resources.limits.memory in {TRAINING_JOB}, "
                "or lower training.batch_size or prompts.token_budget."
            )
        if pod.reason.startswith(_NOT_RUN):
            return InputError(
                f"{TRAINING_JOB}: p{what}, cannot be started ({pod.reason}); correct its image or manifest."
            )
        how = ended(code) + (f": {said or pod.reason}" if said or pod.reason else "")
        if code == Preempted.exit_code and not said:
            how = f"was ended ({pod.reason})" if pod.reason else how
            return Preempted(f"p{what}, {how}; started again, it goes on from its last checkpoint.")
        if code == -signal.SIGTERM:
            return self._stopped()
        return error_of(code, said or f"p{what}, {how}") or Failed(f"P{what}, {how}", pod.code or 0)

    def _stopped(self) -> Preempted:
        said = next(
            (self._last.of(each) for each in sorted(self._pods) if "SIGTERM" in self._last.of(each)), ""
        )
        why = (
            "SIGTERM" if self._ears.asked or not self._over else f"the end of Job {self._name}: {self._over}"
        )
        return Preempted(said or f"stopped by {why}; started again, it goes on from its last checkpoint.")


def _code(pod: Pod) -> int:
    """What a pod's end comes to: `jora`'s own code for what the node has seen, negative of a signal."""
    if pod.reason.startswith(_KILLED_FOR_MEMORY):
        return OutOfMemory.exit_code
    return InputError.exit_code if pod.reason.startswith(_NOT_RUN) else signalled(pod.code or 0)


def _rank(pod: Pod) -> int:
    return rank(_code(pod))
