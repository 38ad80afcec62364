"""The client against a server on loopback that answers as Airflow's API does."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest

from jora_tasks.airflow.client import AirflowApiError, AirflowClient


@pytest.fixture
def runs() -> dict[str, str]:
    """More runs than the API tells of at a time, and the state of each."""
    return {f"run-{number}": "queued" for number in range(230)} | {"run-230": "running", "run-231": "success"}


@pytest.fixture
def busy() -> list[str]:
    """Paths that are answered by "busy, did nothing" once each time they are here."""
    return []


@pytest.fixture
def lost() -> list[str]:
    """Runs whose next change the database undoes, once each time they are here."""
    return []


@pytest.fixture
def url(runs: dict[str, str], busy: list[str], lost: list[str]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            if self.path == "/auth/token":
                self._answer({"access_token": "token"})
                return
            asked = [run for run, state in runs.items() if state == query["state"][0]]
            self._answer({"dag_runs": [{"dag_run_id": run} for run in asked[: int(query["limit"][0])]]})

        def do_PATCH(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path in busy:
                busy.remove(self.path)
                self.send_response(503)
                self.send_header("Retry-After", "0")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            run = self.path.rpartition("/")[2]
            if run in lost:
                lost.remove(run)
                self._answer({"detail": {"reason": "Database error"}}, 500)
                return
            runs[run] = body["state"]
            self._answer({})

        def _answer(self, value: object, status: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_unfinished_run_is_cancelled_however_many_there_are(url: str, runs: dict[str, str]) -> None:
    with AirflowClient(url) as client:
        assert len(client.cancel_unfinished("document_index")) == 231
    assert {state for run, state in runs.items() if run != "run-231"} == {"failed"}
    assert runs["run-231"] == "success"


def test_a_run_that_the_scheduler_writes_to_is_cancelled_all_the_same(
    url: str, runs: dict[str, str], lost: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    lost += ["run-7"] * 3
    with AirflowClient(url) as client:
        client.cancel_unfinished("document_index")
        assert (runs["run-7"], lost) == ("failed", [])
        runs["run-7"], lost[:] = "queued", ["run-7"] * 100  # not for ever
        with pytest.raises(AirflowApiError, match="Airflow answers 500"):
            client.cancel_unfinished("document_index")


def test_what_a_busy_server_did_not_do_is_sent_again(url: str, runs: dict[str, str], busy: list[str]) -> None:
    path = "dags/document_index/dagRuns/run-3"
    busy += [f"/api/v2/{path}"] * 3
    with AirflowClient(url) as client:
        client._call("PATCH", path, json={"state": "failed"})
        assert (runs["run-3"], busy) == ("failed", [])
        busy += [f"/api/v2/{path}"] * 100  # not for ever
        with pytest.raises(AirflowApiError, match="Airflow answers 503"):
            client._call("PATCH", path, json={"state": "failed"})
