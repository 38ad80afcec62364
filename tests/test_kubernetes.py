"""What can be checked of docker/kubernetes without a cluster; `tests/launching` runs the Job's command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from jora_tasks.launching.indexed_job import DEFAULT_PORT

FOLDER = Path(__file__).parents[1] / "docker" / "kubernetes"
PODS = ("worker-pod.yaml", "gpu-pod.yaml", "launcher-pod.yaml")
KINDS = ("Pod", "Service", "ServiceAccount", "Role", "RoleBinding", "Job")


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def values() -> dict[str, Any]:
    [found] = manifests("values.yaml")
    return found


def pod_specs() -> list[dict[str, Any]]:
    pods = [manifest["spec"] for name in PODS for manifest in manifests(name)]
    return [*pods, training_job()["spec"]["template"]["spec"]]


def training_job() -> dict[str, Any]:
    [job] = manifests("training-job.yaml")
    return job


@pytest.mark.parametrize("name", [*PODS, "training-job.yaml", "training-setup.yaml"])
def test_every_field_is_one_of_the_kubernetes_api(name: str) -> None:
    client = pytest.importorskip("kubernetes.client").ApiClient()
    for manifest in manifests(name):
        answer = SimpleNamespace(data=json.dumps(manifest))
        assert manifest["kind"] in KINDS
        read = client.deserialize(answer, f"V1{manifest['kind']}")  # which leaves out what it does not know
        assert client.sanitize_for_serialization(read) == manifest


@pytest.mark.parametrize(
    ("name", "image"), [(PODS[0], "jora-worker"), (PODS[1], "jora-gpu-worker"), (PODS[2], "jora-worker")]
)
def test_the_executor_makes_a_pod_of_a_template(name: str, image: str) -> None:
    generator = pytest.importorskip("airflow.providers.cncf.kubernetes.pod_generator").PodGenerator
    executor = values()["config"]["kubernetes_executor"]
    assert (executor["worker_container_repository"], executor["worker_container_tag"]) == ("", "")
    pod = generator.construct_pod(
        dag_id="adapter_training",
        task_id="train",
        pod_id="pod",
        try_number=1,
        kube_image=None,  # what the executor makes of an empty repository and tag
        date=None,
        args=["python", "-m", "airflow.sdk.execution_time.execute_workload"],
        pod_override_object=generator.from_obj({"pod_template_file": str(FOLDER / name)}),
        base_worker_pod=generator.deserialize_model_file(str(FOLDER / name)),
        namespace="jora",
        scheduler_job_id="1",
        run_id="run",
    )
    [container] = pod.spec.containers
    assert (container.image, container.args[0]) == (f"{image}:latest", "python")
    assert {each.name for each in container.env} > {
        "AIRFLOW__CORE__DAGS_FOLDER",
        "AIRFLOW_IS_K8S_EXECUTOR_POD",
    }
    limits = container.resources.limits
    assert limits.get("nvidia.com/gpu") == ("1" if "gpu" in image else None)


def test_pods_of_tasks_run_without_root_and_know_neither_the_database_nor_a_key() -> None:
    for spec in pod_specs():
        assert spec["securityContext"]["runAsNonRoot"]
        [container] = spec["containers"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        secrets = [each["secretRef"]["name"] for each in container["envFrom"] if "secretRef" in each]
        assert secrets == ["jora-objects"]
        assert not re.search("SQL_ALCHEMY|FERNET|JWT|SECRET_KEY", json.dumps(container))


def test_of_all_pods_the_launcher_alone_may_use_the_api_and_no_more_of_it_than_it_needs() -> None:
    setup = {manifest["kind"]: manifest for manifest in manifests("training-setup.yaml")}
    account = setup["ServiceAccount"]["metadata"]["name"]
    accounts = [
        spec.get("serviceAccountName") for spec in pod_specs() if spec["automountServiceAccountToken"]
    ]
    assert accounts == [account] and not setup["ServiceAccount"]["automountServiceAccountToken"]
    [subject] = setup["RoleBinding"]["subjects"]
    assert subject["name"] == account and setup["RoleBinding"]["roleRef"]["name"] == account
    assert setup["Role"]["metadata"]["name"] == account  # no ClusterRole: its own namespace alone
    rights = {
        f"{resource} {verb}"
        for rule in setup["Role"]["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    jobs = {f"jobs {verb}" for verb in ("create", "get", "list", "delete")}
    assert rights == {*jobs, "pods list", "pods/log get", "secrets create"}


def test_the_pods_of_a_training_find_each_other() -> None:
    [service] = [each for each in manifests("training-setup.yaml") if each["kind"] == "Service"]
    template = training_job()["spec"]["template"]
    assert service["spec"]["selector"] == template["metadata"]["labels"]
    assert service["metadata"]["name"] == template["spec"]["subdomain"]
    assert service["spec"]["publishNotReadyAddresses"] and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["ports"][0]["port"] == DEFAULT_PORT


def test_the_passwords_of_the_pages_are_where_airflow_may_write() -> None:
    server = values()["apiServer"]
    file = values()["config"]["core"]["simple_auth_manager_passwords_file"]
    [mount] = server["extraVolumeMounts"]
    assert not file.startswith(mount["mountPath"])
    assert f"install -m 600 {mount['mountPath']}/airflow_passwords.json {file} && exec" in server["args"][-1]


def test_what_the_manifests_name_is_what_the_commands_make() -> None:
    text = (FOLDER / "values.yaml").read_text()
    made = set(re.findall(r"kubectl create (?:configmap|secret generic) (\S+)", text))
    used = json.dumps([values(), *pod_specs()])
    named = set(
        re.findall(r'(?:configMap|secret|configMapRef|secretRef)"?: \{"(?:name|secretName)": "([^"]+)"', used)
    )
    named |= set(re.findall(r'SecretName": "([^"]+)"', used))
    named |= set(re.findall(r"(?:configMapRef|secretRef): \{name: (\S+)\}", values()["extraEnvFrom"]))
    assert named == made
    pods = {file.name for file in FOLDER.iterdir() if f"--from-file=docker/kubernetes/{file.name}" in text}
    assert {Path(file).name for file in re.findall(r"/etc/jora-pods/\S+(?=})", _all_text())} == pods
    for file in re.findall(r"docker/kubernetes/\S+", text):
        assert (FOLDER.parents[1] / file).is_file()


def _all_text() -> str:
    return "\n".join(file.read_text() for file in FOLDER.iterdir())


def test_no_secret_has_a_value_and_the_chart_reads_templates_as_they_are() -> None:
    for file in FOLDER.iterdir():
        text = file.read_text()
        assert not re.search(r"(?i)(password|secret|key):? *[=:] *['\"]?[0-9a-f]{8}", text), file.name
        assert "{{" not in text, file.name  # Helm's own templates begin so
