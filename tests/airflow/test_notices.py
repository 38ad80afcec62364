from __future__ import annotations

import asyncio
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from jora_tasks.airflow import notices
from tests.webhook import webhook

RECEIVED: list[dict[str, Any]] = []


def take(notice: dict[str, Any]) -> None:
    RECEIVED.append(notice)


def refuse(notice: dict[str, Any]) -> None:
    raise RuntimeError("hook-secret-address")


@pytest.fixture(autouse=True)
def nothing_received() -> None:
    RECEIVED.clear()


def failure(reason: str) -> dict[str, Any]:
    task = SimpleNamespace(dag_id="adapter_training", run_id="manual__1+x", task_id="train")
    return {"task_instance": task, "exception": RuntimeError(reason)}


def run(state: str) -> dict[str, Any]:
    """A DAG run as Airflow's callback of a deadline is given it."""
    return {"dag_id": "document_index", "dag_run_id": "scheduled__1", "state": state}


def test_a_failure_is_posted_with_its_reason_and_without_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://127.0.0.1:8099/")
    with webhook() as (address, received):
        monkeypatch.setenv("JORA_NOTIFY", address)
        notices.failed(failure(f"no model with hf_planted at {address}"))
    assert received == [
        {
            "event": "failed",
            "dag_id": "adapter_training",
            "run_id": "manual__1+x",
            "task_id": "train",
            "reason": "no model with *** at ***",
            "url": "http://127.0.0.1:8099/dags/adapter_training/runs/manual__1%2Bx",
        }
    ]


def test_a_function_can_be_named_and_a_late_run_is_told(monkeypatch):
    monkeypatch.setenv("JORA_NOTIFY", f"{__name__}.take")
    monkeypatch.setattr(notices, "import_string", lambda path: {f"{__name__}.take": take}[path])
    asyncio.run(notices.late(2.5, {"dag_run": run("running")}))
    assert RECEIVED[0]["event"] == "late" and RECEIVED[0]["run_id"] == "scheduled__1"
    assert RECEIVED[0]["reason"] == "The run is not done 2.5 hours after it was queued."


@pytest.mark.parametrize("state", ["success", "failed"])
def test_a_run_that_has_ended_is_not_late(monkeypatch, state):
    monkeypatch.setenv("JORA_NOTIFY", f"{__name__}.take")
    monkeypatch.setattr(notices, "import_string", lambda path: take)
    asyncio.run(notices.late(2.5, {"dag_run": run(state)}))
    assert RECEIVED == []


def test_a_notice_that_cannot_be_sent_fails_nothing_and_tells_no_address(monkeypatch, caplog):
    monkeypatch.setenv("JORA_NOTIFY", "some.function")
    monkeypatch.setattr(notices, "import_string", lambda path: refuse)
    notices.failed(failure("x"))
    assert "could not be sent: RuntimeError" in caplog.text
    assert "hook-secret-address" not in caplog.text


def test_without_a_target_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("JORA_NOTIFY", raising=False)
    notices.failed(failure("x"))
    assert RECEIVED == []


def test_the_deadline_is_a_setting(monkeypatch):
    monkeypatch.delenv("JORA_DEADLINE_HOURS", raising=False)
    assert notices.deadline() is None
    monkeypatch.setenv("JORA_DEADLINE_HOURS", "1.5")
    alert = notices.deadline()
    assert alert is not None and alert.interval == timedelta(hours=1.5)
    assert alert.callback.path == "jora_tasks.airflow.notices.late"
