"""What can be checked of the images without a container engine; `tests/fleet` runs the services' commands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cryptography import x509

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
TARGETS = ("airflow", "worker", "gpu-worker")


def tool(name: str, *arguments: str | Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name(name), *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_is_as_it_should_be() -> None:
    tool("hadolint", DOCKER / "Dockerfile")


@pytest.mark.parametrize("name", ["compose.yaml", "compose.tls.yaml"])
def test_the_compose_files_are_such(name: str) -> None:
    tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / name)


def test_tls_is_for_services_that_there_are_and_publishes_nothing() -> None:
    plain, tls = (
        yaml.safe_load((DOCKER / name).read_text())["services"]
        for name in ("compose.yaml", "compose.tls.yaml")
    )
    assert tls.keys() <= plain.keys() and not any("ports" in service for service in tls.values())
    airflow = {name for name, service in plain.items() if "logs:/var/lib/airflow/logs" in str(service)}
    assert airflow <= tls.keys()


def test_the_certificate_is_of_the_services_and_its_folder_of_its_owner(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    subprocess.run(["sh", DOCKER / "certificates.sh", folder], check=True, capture_output=True)
    assert folder.stat().st_mode & 0o777 == 0o700 and (folder / "ca.key").stat().st_mode & 0o777 == 0o600
    certificate = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    named = set(names.get_values_for_type(x509.DNSName))
    assert named == {"api-server", "redis", "postgres", "mlflow", "localhost"}


def test_the_build_has_what_the_dockerfile_copies_and_nothing_else() -> None:
    """No environment of gigabytes, no home, no secret of docker/."""
    copied = re.findall(r"^COPY ((?!--from).*) \S+$", (DOCKER / "Dockerfile").read_text(), re.M)
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*" and lines[-1] == "**/__pycache__"
    assert {f"!{source}" for sources in copied for source in sources.split()} == set(lines[1:-1])
    assert all((ROOT / line[1:]).exists() for line in lines[1:-1])


def test_the_passwords_of_the_pages_are_the_api_servers_alone_and_where_it_may_write() -> None:
    """Airflow opens their file to write into it; a secret cannot be written to."""
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    assert {name for name, service in services.items() if service.get("secrets")} == {"api-server"}
    api_server = services["api-server"]
    file = api_server["environment"]["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]
    mounted = [volume.split(":")[1] for volume in api_server["volumes"]]
    assert not file.startswith(
        ("/run/secrets", *mounted)
    ) and f"install -m 600 /run/secrets/airflow_passwords {file}" in str(api_server["command"])
    [secret] = yaml.safe_load((DOCKER / "compose.yaml").read_text())["secrets"].values()
    assert not secret["file"].startswith("./config")  # which all services have


def test_services_are_built_from_targets_that_there_are() -> None:
    stages = set(re.findall(r"^FROM .* AS (\S+)$", (DOCKER / "Dockerfile").read_text(), re.M))
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    built = {service["build"]["target"] for service in services.values() if "build" in service}
    assert set(TARGETS) == built <= stages


def test_images_run_without_root_and_say_whether_they_are_well() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    parts = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", text, re.M | re.S))
    assert "USER 50000" in parts["airflow"]  # what the others are made from
    assert all("USER root" not in part for part in parts.values())
    assert "HEALTHCHECK" in parts["airflow"] and "HEALTHCHECK" in parts["worker"]


def test_no_secret_has_a_value_and_none_is_put_into_a_layer() -> None:
    text = (DOCKER / "compose.yaml").read_text()
    names = re.findall(r"^([A-Z]\w+)=(.*)$", (DOCKER / "example.env").read_text(), re.M)
    for name, value in names:
        assert f"${{{name}:?" in text, f"{name} is not asked for"
        assert value == ""
    assert not re.search(r"(?i)password|secret|token", (DOCKER / "Dockerfile").read_text())


def test_pages_and_api_listen_on_loopback() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
