"""docker/kubernetes/training-job.yaml: its processes, as it gives them; the Job that a launch makes of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.launching.indexed_job import grace_of, job_of, secret_of
from jora_tasks.launching.job_file import read_job
from jora_tasks.spec import dump_spec, load_spec
from tests.launching.homes import SECRET, Home

JOB = Path(__file__).parents[2] / "docker" / "kubernetes" / "training-job.yaml"


@pytest.mark.slow
def test_the_pods_of_the_job_train_one_adapter(
    make_home: Callable[[], Home], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JORA_ARTIFACTS", (tmp_path / "shared").as_uri())
    home = make_home()
    spec = load_spec(home.spec, ("training.epochs=2",))
    (tmp_path / "run.yaml").write_text(dump_spec(spec))
    store = ArtifactStore(home.folder)
    store.set_latest(spec.name, store.get("prompts", home.prompts))
    service, *_ = yaml.safe_load_all(JOB.with_name("training-setup.yaml").read_text())
    job = yaml.safe_load(JOB.read_text())
    [container] = job["spec"]["template"]["spec"]["containers"]
    told = {each["name"]: each["value"] for each in container["env"]}
    name, service_name = job["metadata"]["name"], service["metadata"]["name"]
    assert told["JORA_COORDINATOR"] == f"{name}-0.{service_name}:{service['spec']['ports'][0]['port']}"
    assert job["spec"]["template"]["spec"]["subdomain"] == service_name
    assert told["JORA_NUM_PROCESSES"] == str(job["spec"]["completions"]) == str(job["spec"]["parallelism"])

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        told["JORA_COORDINATOR"] = f"127.0.0.1:{probe.getsockname()[1]}"
    here = {
        "jora": str(Path(sys.executable).with_name("jora")),
        "/etc/jora/run.yaml": str(tmp_path / "run.yaml"),
    }
    command = [here.get(word, word) for word in container["command"]]
    pods = []
    for index in range(job["spec"]["completions"]):  # each with a disk of its own, as an emptyDir is
        own = {"JORA_HOME": str(tmp_path / str(index)), "JOB_COMPLETION_INDEX": str(index)}
        environment = {**os.environ, **told, **own, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        pods.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    results = [json.loads(pod.communicate(timeout=400)[0].splitlines()[-1]) for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0]
    assert results[0]["key"] == results[1]["key"]
    assert [result["state"] for result in results] == ["built", "reused"]
    assert store.get("adapter", results[0]["key"]).counts["steps"] == 6


def written(folder: Path, change: Callable[[dict[str, Any]], object] = lambda job: None) -> Path:
    job = yaml.safe_load(JOB.read_text())
    change(job)
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    return file


def pod_in(job: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = job["spec"]["template"]["spec"]
    return pod


def test_a_job_of_a_launch_has_one_try_a_name_and_a_coordinator_of_its_own(tmp_path: Path) -> None:
    template = read_job(written(tmp_path))
    first, second = (job_of(template, "label", 7000, {"name": "task", "uid": "1"}) for _ in range(2))
    name = first["metadata"]["name"]
    assert name.startswith("jora-training-label-") and name != second["metadata"]["name"]
    assert template == read_job(written(tmp_path))
    assert (first["spec"]["backoffLimit"], first["spec"]["completionMode"]) == (0, "Indexed")
    assert "podFailurePolicy" not in first["spec"]  # what has failed is the launcher's to judge
    [container] = first["spec"]["template"]["spec"]["containers"]
    told = {each["name"]: each.get("value") for each in container["env"]}
    assert told["JORA_COORDINATOR"] == f"{name}-0.jora-training:7000" and told["JORA_NUM_PROCESSES"] == "2"
    assert len(told) == len(container["env"]) == 2
    secret = secret_of(name, "uid", {"arguments": ["train"]})
    [owner] = secret["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("Job", name, "uid")
    [volume] = [each for each in first["spec"]["template"]["spec"]["volumes"] if "secret" in each]
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]
    assert container["command"][-1] in {
        f"{each['mountPath']}/told.json" for each in container["volumeMounts"]
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda job: job.update(kind="Pod"), "has no manifests of kind Job; give it one"),
        (lambda job: job.update(apiVersion="batch/v2"), "apiVersion is 'batch/v2'; write batch/v1"),
        (lambda job: job.pop("spec"), "spec is missing"),
        (lambda job: job["spec"].pop("completions"), "spec.completions is missing"),
        (lambda job: job["spec"].update(parallelism=1), "spec.completions is 2 and spec.parallelism 1"),
        (lambda job: job["spec"]["template"].pop("spec"), "spec.template.spec is missing"),
        (lambda job: job["spec"]["template"]["spec"].pop("subdomain"), "spec.subdomain is missing"),
        (lambda job: job["spec"]["template"]["spec"].update(containers=[]), "spec.containers is empty"),
        (lambda job: job["spec"].update(completions=True, parallelism=True), "spec.completions is wrong"),
        (lambda job: job.update(metadata="x"), "metadata is no mapping"),
        (lambda job: job["metadata"].update(labels=["a"]), "metadata.labels is no mapping"),
        (
            lambda job: job["metadata"].update(annotations={"a": date(2024, 1, 2)}),
            "metadata.annotations.a is",
        ),
        (lambda job: job["spec"]["template"].update(metadata="x"), "spec.template.metadata is no mapping"),
        (lambda job: pod_in(job).update(subdomain=""), "spec.template.spec.subdomain is wrong"),
        (lambda job: pod_in(job).update(volumes=3), "spec.template.spec.volumes is no list"),
        (lambda job: pod_in(job).update(terminationGracePeriodSeconds="long"), "PeriodSeconds is wrong"),
        (lambda job: pod_in(job)["containers"][0].pop("name"), "containers.0.name is missing"),
        (lambda job: pod_in(job)["containers"][0].update(volumeMounts=3), "0.volumeMounts is no list"),
        (lambda job: pod_in(job)["containers"][0].update(env={"A": SECRET}), "containers.0.env is no list"),
        (lambda job: pod_in(job)["containers"][0].update(env=[SECRET]), "containers.0.env.0 is no mapping"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read_job(written(tmp_path, change))
    told = str(error.value)
    assert told.startswith("JORA_TRAINING_JOB /") and said in told and SECRET not in told


def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_job(tmp_path / "missing.yaml")
    (tmp_path / "job.yaml").write_text("a: [")
    with pytest.raises(InputError, match="is not YAML"):
        read_job(tmp_path / "job.yaml")
    (tmp_path / "job.yaml").write_text("a: 2024-13-45")
    with pytest.raises(InputError, match=r"is not YAML \(month must be"):
        read_job(tmp_path / "job.yaml")


def test_a_field_that_says_nothing_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("terminationGracePeriodSeconds", "volumes"))
    file = written(tmp_path, lambda job: (pod_in(job).update(nothing), job.update(metadata=None)))
    job = job_of(read_job(file), "label", 7000, None)
    assert grace_of(job) == 30 and job["metadata"]["name"].startswith("jora-training-")


def test_a_job_that_has_ended_is_there_until_its_end_was_seen(tmp_path: Path) -> None:
    file = written(tmp_path, lambda job: job["spec"].update(ttlSecondsAfterFinished=0))
    assert "ttlSecondsAfterFinished" not in job_of(read_job(file), "label", 7000, None)["spec"]
