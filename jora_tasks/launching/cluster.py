"""What a launch asks of the Kubernetes API: one namespace's Jobs, a Secret, the Jobs' pods and their logs."""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jora_tasks.errors import InputError, Preempted, RunStopped, first_line, untrusted
from jora_tasks.launching.access import way_to_the_api
from jora_tasks.launching.indexed_job import LABEL
from jora_tasks.launching.job_file import Manifest
from jora_tasks.launching.settings import TRAINING_JOB

_INDEX = "batch.kubernetes.io/job-completion-index"
_TIMEOUT = (5.0, 30.0)
_QUIET_LOG = (5.0, 60.0)  # a connection that was lost without a word; the log is then asked for again
_POLL_SECONDS = 0.5
_OVERLAP_LINES = 10_000  # of which a new connection may bring some again


class Away(RunStopped):
    """The Kubernetes API does not answer, or has trouble of its own."""


@dataclass(frozen=True)
class Pod:
    """A pod of a Job.

    Attributes:
      process: its index in the Job, which is the number of its process.
      begun: whether its container runs, or has run.
      code: exit code; None while it runs.
      reason: in words, why it does not run, or ended.
    """

    name: str
    process: int
    node: str
    begun: bool
    code: int | None
    reason: str


class Cluster:
    """The API; see `access` for the way to it.

    Attributes:
      own: the namespace of whoever asks.
      namespace: the one that is asked about.
    """

    def __init__(self, namespace: str | None = None) -> None:
        """
        Args:
          namespace: by default `own`.

        Raises:
          InputError: if the client is not installed, or nothing tells where the API is.
        """
        way, self.own = way_to_the_api()
        from kubernetes import client

        self.namespace = namespace or self.own
        api = client.ApiClient(way)
        self._jobs, self._core = client.BatchV1Api(api), client.CoreV1Api(api)

    def create(self, job: Manifest) -> str:
        """Make a Job; its uid."""
        with _answers(f"create Jobs in namespace {self.namespace}"):
            made = self._jobs.create_namespaced_job(self.namespace, job, _request_timeout=_TIMEOUT)
        return str(made.metadata.uid)

    def create_secret(self, secret: Manifest) -> None:
        with _answers(f"create Secrets in namespace {self.namespace}"):
            self._core.create_namespaced_secret(self.namespace, secret, _request_timeout=_TIMEOUT)

    def jobs(self, label: str) -> list[str]:
        """Names of the Jobs with this label, also of those whose pods are about to end."""
        with _answers(f"list Jobs in namespace {self.namespace}"):
            found = self._jobs.list_namespaced_job(
                self.namespace, label_selector=f"{LABEL}={label}", _request_timeout=_TIMEOUT
            )
        return [job.metadata.name for job in found.items]

    def delete(self, job: str) -> None:
        """Have a Job's pods ended, by SIGTERM and after their grace SIGKILL, and then the Job."""
        with _answers(f"delete Jobs in namespace {self.namespace}", absent=True):
            self._jobs.delete_namespaced_job(
                job, self.namespace, propagation_policy="Foreground", _request_timeout=_TIMEOUT
            )

    def ended(self, job: str) -> str | None:
        """Why a Job starts no pods any more, as that it was deleted or has failed.

        Returns: empty where all have ended well; None while it does.
        """
        found = None
        with _answers(f"get Jobs in namespace {self.namespace}", absent=True):
            found = self._jobs.read_namespaced_job(job, self.namespace, _request_timeout=_TIMEOUT)
        conditions = (found and found.status and found.status.conditions) or []
        true = {each.type: each for each in conditions if each.status == "True"}
        if "Complete" in true:
            return ""
        if found is None or found.metadata.deletion_timestamp:
            return "it was deleted"
        return f"{true['Failed'].reason}: {true['Failed'].message}" if "Failed" in true else None

    def pods(self, job: str, container: str) -> list[Pod]:
        """The pods of a Job, by their processes; of two of one process the one that has begun is last.

        Args:
          container: whose start and end count.
        """
        with _answers(f"list pods in namespace {self.namespace}"):
            found = self._core.list_namespaced_pod(
                self.namespace, label_selector=f"job-name={job}", _request_timeout=_TIMEOUT
            )
        return sorted(
            (pod_of(pod, container) for pod in found.items), key=lambda pod: (pod.process, pod.begun)
        )

    def follow(
        self, pod: Pod, container: str, ended: Callable[[], bool], report: Callable[[str], None]
    ) -> None:
        """Pass each line of a container's log on, once, until it has ended; connections may break.

        Args:
          ended: whether the container has.

        Raises:
          InputError: if the account may not, from the first line on.
        """
        # Known by more than their stamps: a node's clock may step back, and two lines may share one.
        recent: deque[tuple[str, str]] = deque(maxlen=_OVERLAP_LINES)
        heard = time.monotonic()
        while True:
            over = ended()  # asked first, so that no line before the end is missed
            since = {"since_seconds": int(time.monotonic() - heard) + 10} if recent else {}
            known = set(recent)
            try:
                for line in self._lines(pod.name, container, since):
                    if line not in known:
                        recent.append(line)
                        heard = time.monotonic()
                        report(line[1])
            except Away:
                pass
            except InputError:
                if not recent:
                    raise
            if over:
                return
            time.sleep(_POLL_SECONDS)

    def _lines(self, pod: str, container: str, since: dict[str, int]) -> Iterator[tuple[str, str]]:
        """Lines of a log as they come, each with when it was written."""
        with _answers(f"get pods/log in namespace {self.namespace}", absent=True):
            answer = self._core.read_namespaced_pod_log(
                pod,
                self.namespace,
                container=container,
                follow=True,
                timestamps=True,
                _preload_content=False,
                _request_timeout=_QUIET_LOG,
                **since,
            )
            rest = b""
            with contextlib.closing(answer):
                for data in answer.stream(amt=None):
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        stamp, _, text = line.decode("utf-8", "replace").partition(" ")
                        yield stamp, text.rstrip()


def pod_of(found: Any, container: str) -> Pod:
    """A pod as the API tells it, in the client's own form."""
    status, metadata = found.status, found.metadata
    state = next((each.state for each in status.container_statuses or [] if each.name == container), None)
    ended, waiting = state and state.terminated, state and state.waiting
    code, reason = (ended.exit_code, _why(ended)) if ended else (None, "")
    if code is None and status.phase == "Failed":  # evicted, or its node is gone
        code, reason = Preempted.exit_code, _why(status) or "Failed"
    if code is None and waiting and waiting.reason not in (None, "ContainerCreating", "PodInitializing"):
        reason = _why(waiting)
    unscheduled = [
        each for each in status.conditions or [] if each.type == "PodScheduled" and each.status == "False"
    ]
    if code is None and unscheduled:
        reason = _why(unscheduled[0])
    return Pod(
        metadata.name,
        int((metadata.annotations or {}).get(_INDEX, 0)),
        found.spec.node_name or "",
        bool(ended or (state and state.running)),
        code,
        reason,
    )


def _why(told: Any) -> str:
    """Reason and message of a state, in one line; without the reason that says no more than an exit code."""
    reason = "" if told.reason in (None, "Error", "Completed") else told.reason
    return ": ".join(filter(None, (reason, " ".join((told.message or "").split()))))


@contextlib.contextmanager
def _answers(what: str, absent: bool = False) -> Iterator[None]:
    """Turn what the API says into an error in a sentence.

    Args:
      what: is asked of it, as a right that an account may have.
      absent: whether what is not there is fine.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        if absent and error.status in (400, 404):  # 400: of a container that is gone
            return
        raise _error(error, what) from None
    except HTTPError as error:
        if untrusted(error):
            raise InputError(
                f"{TRAINING_JOB}: the Kubernetes API has a certificate that is not trusted here; name "
                "the file of its authority in certificate-authority of the kubeconfig."
            ) from None
        raise Away(
            f"The Kubernetes API does not answer ({first_line(error)}); run this again later."
        ) from None
    except ValueError:  # whose text may have the account's token
        raise InputError(
            f"{TRAINING_JOB}: the Kubernetes API cannot be asked to {what}; correct server and token of the "
            "kubeconfig, which have characters that no request may have."
        ) from None


def _error(error: Any, what: str) -> InputError | Away:
    """What the API answered, in a sentence; see `_answers`."""
    said = _message(error)
    # A quota is told as a right that is lacking, and has room again once others have ended.
    if error.status in (401, 403) and "exceeded quota" not in said:
        return InputError(
            f"{TRAINING_JOB}: the Kubernetes API does not let this account {what} ({said}); give it the "
            "role of docker/kubernetes/training-setup.yaml."
        )
    if error.status in (403, 408, 429) or not error.status or error.status >= 500:
        return Away(f"The Kubernetes API cannot {what} now ({said}); run this again later.")
    return InputError(f"{TRAINING_JOB}: the Kubernetes API refuses to {what} ({said}); correct the manifest.")


def _message(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.status} {error.reason}"
