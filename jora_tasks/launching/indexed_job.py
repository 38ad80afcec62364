"""The Kubernetes Job of a launch, made from the manifest that ``JORA_TRAINING_JOB`` names; see `job_file`.

It has one pod a process and one try: what is made of its end, the launcher says. What its processes run,
secrets among it, is in no manifest but in a Secret that the Job owns and its pods alone mount: pods need
neither a terminal nor a way to the launcher for it, and train on while the Kubernetes API is away.
"""

from __future__ import annotations

import base64
import copy
import json
import secrets
from collections.abc import Mapping
from typing import Any

from jora_tasks.digests import digest_json
from jora_tasks.launching.job_file import Manifest
from jora_tasks.trainer.group import COORDINATOR, PROCESSES

LABEL = "jora-training"
"""Label by which the Job of an earlier try is known."""
DEFAULT_PORT = 7777

_FOLDER, _FILE = "/run/jora", "told.json"
# Of a manifest that is to be applied by hand: how often to try again, and what Kubernetes answers itself.
_LEFT_OUT = (
    "podFailurePolicy",
    "backoffLimitPerIndex",
    "maxFailedIndexes",
    "successPolicy",
    "suspend",
    "ttlSecondsAfterFinished",  # one that is gone could not tell how it ended
)


def training_label(name: str, of: str) -> str:
    """What the Jobs of one training are labelled with, the same in every try.

    Args:
      name: of what is made.
      of: whose training it is: an Airflow run's, or that of a home on a host.
    """
    return digest_json([name, of]).rpartition(":")[2][:32]


def job_of(template: Manifest, label: str, port: int, owner: Mapping[str, str] | None) -> Manifest:
    """A Job with a name of its own.

    Args:
      template: see `jora_tasks.launching.job_file.read_job`; not changed.
      label: see `training_label`.
      port: that the first process listens on.
      owner: name and uid of the pod whose end is the Job's too; None where that is not known.
    """
    job = copy.deepcopy(template)
    given, spec = job.get("metadata") or {}, job["spec"]
    name = f"{str(given.get('name') or 'jora-training')[:40]}-{label[:6]}-{secrets.token_hex(3)}"
    kept = {key: given[key] for key in ("annotations", "namespace") if key in given}
    job["metadata"] = {**kept, "name": name, "labels": {**(given.get("labels") or {}), LABEL: label}}
    if owner:
        job["metadata"]["ownerReferences"] = [_reference("v1", "Pod", owner)]
    job["spec"] = {key: value for key, value in spec.items() if key not in _LEFT_OUT}
    job["spec"] |= {"completionMode": "Indexed", "backoffLimit": 0}
    metadata = spec["template"].get("metadata") or {}
    labels = {**(metadata.get("labels") or {}), LABEL: label}
    spec["template"]["metadata"] = {**metadata, "labels": labels}
    pod = spec["template"]["spec"]
    pod["restartPolicy"] = "Never"
    pod["volumes"] = [*(pod.get("volumes") or []), {"name": "jora-told", "secret": {"secretName": name}}]
    container = pod["containers"][0]
    container.pop("args", None)
    container["command"] = ["python", "-m", "jora_tasks.launching.member", f"{_FOLDER}/{_FILE}"]
    own = {PROCESSES: str(spec["completions"])}
    if spec["completions"] > 1:
        own[COORDINATOR] = f"{name}-0.{pod['subdomain']}:{port}"
    others = [each for each in container.get("env") or [] if each["name"] not in (PROCESSES, COORDINATOR)]
    container["env"] = [*others, *({"name": key, "value": value} for key, value in own.items())]
    mount = {"name": "jora-told", "mountPath": _FOLDER, "readOnly": True}
    container["volumeMounts"] = [*(container.get("volumeMounts") or []), mount]
    return job


def secret_of(name: str, uid: str, told: Mapping[str, Any]) -> Manifest:
    """The Secret that says what the pods of a Job run; it goes with the Job.

    Args:
      name: of the Job, which is the Secret's too.
      told: see `jora_tasks.launching.member`.
    """
    line = json.dumps(told).encode() + b"\n"
    owner = _reference("batch/v1", "Job", {"name": name, "uid": uid})
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "ownerReferences": [owner]},
        "immutable": True,
        "data": {_FILE: base64.b64encode(line).decode()},
    }


def container_of(job: Manifest) -> str:
    """Name of the container that trains."""
    return str(job["spec"]["template"]["spec"]["containers"][0]["name"])


def grace_of(job: Manifest) -> float:
    """Seconds from SIGTERM to SIGKILL."""
    given = job["spec"]["template"]["spec"].get("terminationGracePeriodSeconds")
    return 30.0 if given is None else float(given)


def _reference(version: str, kind: str, owner: Mapping[str, str]) -> Manifest:
    # What blocks its owner's deletion asks for rights on the owner.
    return {"apiVersion": version, "kind": kind, **owner, "blockOwnerDeletion": False, "controller": False}
