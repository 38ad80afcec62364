"""The way to a Kubernetes API, and what it does not answer or let one do, in a sentence."""

from __future__ import annotations

import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from jora_tasks.errors import InputError
from jora_tasks.launching import access
from jora_tasks.launching.cluster import Away
from jora_tasks.launching.cluster import Cluster as Api
from jora_tasks.launching.indexed_job import job_of
from jora_tasks.launching.job_file import read_job
from tests.launching.cluster import KUBERNETES, TOKEN, Cluster

BAD = [None, "kind: Config", "contexts: [", "- a", "a: 2024-13-45", "current-context: a\ncontexts: a", "\xff"]


@pytest.mark.parametrize("text", BAD)
def test_without_a_way_to_the_api_what_to_give_is_told(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    if text:
        (tmp_path / "config").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"needs a way to the Kubernetes API .*or name a kubeconfig"):
        Api()


def test_in_a_pod_the_account_of_the_pod_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kubernetes.config import incluster_config

    authority = subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=a",
            "-keyout",
            "/dev/null",
        ],
        check=True,
        capture_output=True,
    )
    for name, data in {"token": b"a token", "ca.crt": authority.stdout, "namespace": b"teams\n"}.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(access, "_ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    api = Api()
    assert (api.own, api.namespace, Api("other").namespace) == ("teams", "teams", "other")
    with pytest.raises(Away, match=r"does not answer .*127\.0\.0\.1"):
        api.jobs("label")


def test_a_token_is_told_to_the_api_alone(cluster: Cluster) -> None:
    config = yaml.safe_load(cluster.kubeconfig.read_text())

    def api(token: str) -> Api:
        config["users"][0]["user"]["token"] = token
        cluster.kubeconfig.write_text(yaml.safe_dump(config))
        return Api()

    from_a_block = api(f"{TOKEN}\n")
    assert from_a_block.jobs("a") == from_a_block.jobs("b") == []
    with pytest.raises(InputError, match="correct server and token of the kubeconfig") as error:
        api(f"{TOKEN}\n{TOKEN}").jobs("a")
    assert TOKEN not in str(error.value)


def test_a_quota_without_room_is_tried_again_later(cluster: Cluster) -> None:
    cluster.full = True
    job = job_of(read_job(KUBERNETES / "training-job.yaml"), "label", 7777, None)
    with pytest.raises(Away, match=r"exceeded quota: jobs, limited: 1\); run this again later"):
        Api().create(job)


def test_a_certificate_that_is_not_trusted_is_bad_input(cluster: Cluster, tmp_path: Path) -> None:
    pem = tmp_path / "it.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*command, "-keyout", pem, "-out", pem], check=True, capture_output=True)
    pem.write_text(pem.read_text())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = yaml.safe_load(cluster.kubeconfig.read_text())
        config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{server.server_port}"
        cluster.kubeconfig.write_text(yaml.safe_dump(config))
        with pytest.raises(InputError, match="is not trusted here; name the file of its authority"):
            Api().jobs("a")
        server.shutdown()
