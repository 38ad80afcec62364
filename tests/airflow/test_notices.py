from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from jora_tasks.airflow import notices

RECEIVED: list[dict[str, Any]] = []


def take(notice: dict[str, Any]) -> None:
    RECEIVED.append(notice)


def refuse(notice: dict[str, Any]) -> None:
    raise RuntimeError("hook-secret-address")


@pytest.fixture(autouse=True)
def nothing_received() -> None:
    RECEIVED.clear()


@pytest.fixture
def webhook() -> Iterator[str]:
    """Takes what is posted to it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            take(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook"
        server.shutdown()
        thread.join()


def failure(reason: str) -> dict[str, Any]:
    task = SimpleNamespace(dag_id="adapter_training", run_id="manual__1+x", task_id="train")
    return {"task_instance": task, "exception": RuntimeError(reason)}


def test_a_failure_is_posted_with_its_reason_and_without_secrets(webhook, monkeypatch):
    monkeypatch.setenv("JORA_NOTIFY", webhook)
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://127.0.0.1:8099/")
    notices.failed(failure(f"no model with hf_planted at {webhook}"))
    assert RECEIVED == [
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
    context = {"dag_run": {"dag_id": "document_index", "dag_run_id": "scheduled__1"}}
    asyncio.run(notices.late(2.5, context))
    assert RECEIVED[0]["event"] == "late" and RECEIVED[0]["run_id"] == "scheduled__1"
    assert RECEIVED[0]["reason"] == "The run is not done 2.5 hours after it was queued."


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
