"""Credentials that Airflow's connections keep reach a stage, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk._shared.secrets_masker import redact

from jora_tasks.airflow import connections, notices
from jora_tasks.airflow.failures import BadInput
from jora_tasks.airflow.operators import StageOperator
from tests.webhook import webhook

SECRET = "of-the-connection-4711"
OBJECTS = {
    "conn_type": "aws",
    "login": "worker",
    "password": SECRET,
    "extra": {"endpoint_url": "http://127.0.0.1:9", "region_name": "eu-north-1", "role_arn": "none"},
}
TELLS = """
import json, os, sys
names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
told = {name: os.environ.get(name) for name in names}
others = [name for name in os.environ if name.startswith("AIRFLOW")]
secret, rest = sorted(told.pop("AWS_SECRET_ACCESS_KEY")), list(told.values())
print(json.dumps({"kind": "index", "key": "k", "secret": secret, "others": others, "rest": rest}))
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's environment is its own; that of the tests is put back."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("JORA_ARTIFACTS_CONN_ID", "jora_artifacts")


def give(patch: pytest.MonkeyPatch, name: str, connection: dict[str, Any]) -> None:
    patch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(connection))


def execute(command: tuple[str, ...]) -> Any:
    run = SimpleNamespace(dag_id="document_index", run_id="manual__1", conf={})
    given = {"dag_run": run, "triggering_asset_events": {}, "outlet_events": {}}
    return StageOperator(task_id="stage", stage="index", command=command).execute(given)


def test_a_stage_has_them_in_its_environment_and_no_file_has_them(home: Path, script: Any, monkeypatch: Any):
    give(monkeypatch, "jora_artifacts", OBJECTS)
    result = execute(script(TELLS))
    assert result["secret"] == sorted(SECRET) and result["others"] == []
    assert result["rest"] == ["worker", "http://127.0.0.1:9", "eu-north-1"]
    files = [file for file in home.rglob("*") if file.is_file()]
    assert files and not [file for file in files if SECRET.encode() in file.read_bytes()]
    assert SECRET not in str(redact(f"the stage says {SECRET}"))


@pytest.mark.parametrize(
    ("connection", "said"),
    [
        (None, "names the connection 'jora_artifacts', which Airflow does not have; add it"),
        (OBJECTS | {"conn_type": "ftp"}, "names the connection 'jora_artifacts' of type 'ftp'; give one of"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(
    airflow_db: None, home: Path, script: Any, monkeypatch: Any, connection: Any, said: str
):
    if connection:
        give(monkeypatch, "jora_artifacts", connection)
    with pytest.raises(BadInput, match=f"JORA_ARTIFACTS_CONN_ID {said}") as refused:
        execute(script(TELLS))
    assert SECRET not in str(refused.value) and not home.exists()


@pytest.mark.parametrize(
    ("name", "connection", "told"),
    [
        (
            "mlflow",
            {"conn_type": "http", "schema": "https", "host": "mlflow.example", "port": 8443, "login": "jora"}
            | {"password": SECRET},
            {
                "MLFLOW_TRACKING_URI": "https://mlflow.example:8443",
                "MLFLOW_TRACKING_USERNAME": "jora",
                "MLFLOW_TRACKING_PASSWORD": SECRET,
            },
        ),
        (
            "mlflow",
            {"conn_type": "http", "host": "http://mlflow:5000", "extra": {"token": SECRET}},
            {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "MLFLOW_TRACKING_TOKEN": SECRET},
        ),
        (
            "openlineage",
            {"conn_type": "http", "host": "marquez", "port": 5000, "password": SECRET},
            {"OPENLINEAGE_URL": "http://marquez:5000", "OPENLINEAGE_API_KEY": SECRET},
        ),
    ],
)
def test_what_the_servers_connections_say(
    monkeypatch: Any, name: str, connection: dict[str, Any], told: dict[str, str]
):
    give(monkeypatch, "server", connection)
    assert connections.credentials({f"JORA_{name.upper()}_CONN_ID": "server"}) == told
    assert connections.credentials({}) == {}


def test_the_webhook_s_address_may_be_a_connection(monkeypatch: Any):
    monkeypatch.delenv(notices.NOTIFY, raising=False)
    monkeypatch.setenv(connections.NOTIFY_ID, "chat")
    with webhook() as (url, received):
        give(monkeypatch, "chat", {"conn_type": "http", "host": url, "password": SECRET})
        assert connections.webhook() == f"{url}/{SECRET}"
        notices.send("failed", "adapter_training", "manual__1", "train", "no room")
    assert [notice["reason"] for notice in received] == ["no room"]
