"""The manifest that ``JORA_TRAINING_JOB`` names: what the pods of a training are like.

Image, resources, volumes, and on which nodes. Its first container trains. Fields that are read here are held
to a model of them; what the others may be the Kubernetes API says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jora_tasks.errors import InputError
from jora_tasks.launching.settings import TRAINING_JOB
from jora_tasks.reading import read_text

Manifest = dict[str, Any]

_REASONS = {"missing": "is missing", "model_type": "is no mapping", "dict_type": "is no mapping"}
_REASONS |= {"list_type": "is no list", "too_short": "is empty"}

_Text = Annotated[str, Field(min_length=1)]
_Count = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Metadata(_Part):
    name: str | None = None
    namespace: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _Variable(_Part):
    name: _Text
    value: str | None = None


class _Container(_Part):
    name: _Text
    env: list[_Variable] | None = None
    volumeMounts: list[dict[str, Any]] | None = None


class _Pod(_Part):
    subdomain: _Text | None = None
    terminationGracePeriodSeconds: Annotated[int, Field(ge=0)] | None = None
    volumes: list[dict[str, Any]] | None = None
    containers: Annotated[list[_Container], Field(min_length=1)]


class _Template(_Part):
    metadata: _Metadata | None = None
    spec: _Pod


class _Spec(_Part):
    completions: _Count
    parallelism: _Count
    template: _Template


class _Job(_Part):
    metadata: _Metadata | None = None
    spec: _Spec


def read_job(file: Path) -> Manifest:
    """The Job of a manifest.

    Args:
      file: YAML; documents of other kinds are left alone.

    Raises:
      InputError: naming file and field.
    """
    what = f"{TRAINING_JOB} {file}"
    text = read_text(file, what)
    try:
        documents = list(yaml.safe_load_all(text))
    # PyYAML lets Python's own errors through for odd values, such as the date 2024-13-45.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{what} is not YAML ({reason}); correct it.") from None
    jobs = [each for each in documents if isinstance(each, dict) and each.get("kind") == "Job"]
    if len(jobs) != 1:
        raise InputError(f"{what} has {len(jobs) or 'no'} manifests of kind Job; give it one.")
    job: Manifest = jobs[0]
    if (version := job.get("apiVersion")) != "batch/v1":
        raise InputError(f"{what}: apiVersion is {version!r}; write batch/v1.")
    try:
        spec = _Job.model_validate(job).spec
    except ValidationError as error:
        first = error.errors(include_input=False)[0]  # a value may be a secret
        field = ".".join(map(str, first["loc"]))
        reason = _REASONS.get(first["type"]) or f"is wrong: {first['msg'][0].lower()}{first['msg'][1:]}"
        raise InputError(f"{what}: {field} {reason}; see docker/kubernetes/training-job.yaml.") from None
    if spec.completions != spec.parallelism:
        raise InputError(
            f"{what}: spec.completions is {spec.completions} and spec.parallelism {spec.parallelism}; give "
            "both the number of processes."
        )
    if spec.completions > 1 and not spec.template.spec.subdomain:
        raise InputError(
            f"{what}: spec.template.spec.subdomain is missing; name the headless Service by which the pods "
            "find the first of them."
        )
    return job
