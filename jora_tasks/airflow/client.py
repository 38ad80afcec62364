"""Talks to an Airflow through its public API."""

from __future__ import annotations

import ssl
import time
from types import TracebackType
from typing import Any, Self

import httpx

UNFINISHED = ("queued", "running")
_SENT_AT_MOST = 10  # times, while the answer is that nothing was done of it


class AirflowApiError(RuntimeError):
    """Airflow refused a request; the message is what it said.

    Attributes:
      status: the HTTP status, such as 400 for settings out of bounds.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class AirflowClient:
    """The calls that start and follow DAG runs.

    Records are the API's own JSON objects: https://airflow.apache.org/docs/apache-airflow/stable/stable-rest-api-ref.html
    """

    def __init__(
        self,
        url: str,
        timeout: float = 90.0,
        login: tuple[str, str] | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        """Talk to the Airflow at this address.

        Args:
          timeout: seconds that an answer may take.
          login: name and password; a local Airflow asks for none.
          trust: whose certificate its server may have, by default those that are known publicly.
        """
        # Loopback: never by a proxy. Retries cover a connection dropped while every core is busy.
        transport = httpx.HTTPTransport(retries=3, verify=trust or True)
        self._http = httpx.Client(base_url=url, timeout=timeout, trust_env=False, transport=transport)
        self._token = ""
        self._login = login

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def health(self) -> dict[str, Any]:
        """Component → its status and last heartbeat. Needs no token."""
        response = self._http.get("/api/v2/monitor/health")
        response.raise_for_status()
        return response.json()

    def import_errors(self) -> list[dict[str, Any]]:
        """DAG files that could not be read: ``filename``, ``stack_trace``, ``timestamp``."""
        return self._call("GET", "importErrors")["import_errors"]

    def dag(self, dag_id: str) -> dict[str, Any] | None:
        """The DAG's record, or None where Airflow has not read it yet."""
        try:
            return self._call("GET", f"dags/{dag_id}")
        except AirflowApiError as error:
            if error.status == 404:
                return None
            raise

    def unpause(self, dag_id: str) -> None:
        """Let the DAG's runs start."""
        self._call("PATCH", f"dags/{dag_id}", json={"is_paused": False})

    def ensure_pool(self, name: str, slots: int, description: str) -> None:
        """Create the pool unless it exists; slots that someone chose stay."""
        try:
            self._call(
                "POST",
                "pools",
                json={
                    "name": name,
                    "slots": slots,
                    "description": description,
                    "include_deferred": False,
                },
            )
        except AirflowApiError as error:
            if error.status != 409:
                raise

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> dict[str, Any]:
        """Start a run by hand; the record of the new run, with its ``dag_run_id``.

        Raises:
          AirflowApiError: status 400 if a setting in ``conf`` is out of bounds.
        """
        return self._call("POST", f"dags/{dag_id}/dagRuns", json={"logical_date": None, "conf": conf or {}})

    def dag_run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """The run's record; ``state`` is queued, running, success or failed."""
        return self._call("GET", f"dags/{dag_id}/dagRuns/{run_id}")

    def dag_runs(self, dag_id: str, since: str | None = None) -> list[dict[str, Any]]:
        """Runs of the DAG that were due at ``since`` (ISO 8601) or later, newest first."""
        parameters = {"order_by": "-run_after", "limit": "100"} | ({"run_after_gte": since} if since else {})
        return self._call("GET", f"dags/{dag_id}/dagRuns", params=parameters)["dag_runs"]

    def triggered_runs(self, dag_id: str, run_id: str) -> list[dict[str, str]]:
        """The runs, of whatever DAG, that asset events of this run led to, once they have started."""
        parameters = {"source_dag_id": dag_id, "source_run_id": run_id, "limit": "100"}
        try:
            events = self._call("GET", "assets/events", params=parameters)["asset_events"]
        except AirflowApiError as error:
            if error.status != 500:
                raise
            # Airflow 3.3.2 fails here as long as a triggered run is queued: it has no start date yet.
            return []
        runs = {
            (run["dag_id"], run["run_id"]): {"dag_id": run["dag_id"], "run_id": run["run_id"]}
            for event in events
            for run in event["created_dagruns"]
        }
        return list(runs.values())

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The run's tasks with ``task_id``, ``state``, ``try_number``, ``start_date``, ``duration``."""
        return self._call("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances", params={"limit": "100"})[
            "task_instances"
        ]

    def xcom(self, dag_id: str, run_id: str, task_id: str) -> Any:
        """What the task returned, or None if it returned nothing (yet)."""
        try:
            return self._call(
                "GET",
                f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value",
                params={"deserialize": "false", "stringify": "false"},
            )["value"]
        except AirflowApiError as error:
            if error.status == 404:
                return None
            raise

    def task_log(
        self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, lines: int = 20
    ) -> list[str]:
        """The last lines of a task's log, without times and marks."""
        content = self._call(
            "GET",
            f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}",
            params={"full_content": "true"},
        )["content"]
        texts = [line if isinstance(line, str) else str(line.get("event", "")) for line in content]
        return [text for text in texts if text and not text.startswith(("::group::", "::endgroup::"))][
            -lines:
        ]

    def cancel_unfinished(self, dag_id: str) -> list[str]:
        """Fail every queued or running run of the DAG, which ends its tasks; their run ids."""
        cancelled: list[str] = []
        # Those that wait come first, or the next would start; the API tells of a hundred at a time.
        while run_ids := [each for each in self._unfinished(dag_id) if each not in cancelled]:
            for run_id in run_ids:
                self._cancel(dag_id, run_id)
            cancelled += run_ids
        return cancelled

    def _cancel(self, dag_id: str, run_id: str) -> None:
        """Fail a run, again where the scheduler wrote to it at that moment and the database took its side."""
        for further in reversed(range(_SENT_AT_MOST)):
            try:
                self._call("PATCH", f"dags/{dag_id}/dagRuns/{run_id}", json={"state": "failed"})
                return
            except AirflowApiError as error:
                if error.status != 500 or not further:
                    raise
                time.sleep(0.5)

    def _unfinished(self, dag_id: str) -> list[str]:
        return [
            run["dag_run_id"]
            for state in UNFINISHED
            for run in self._call("GET", f"dags/{dag_id}/dagRuns", params={"state": state, "limit": "100"})[
                "dag_runs"
            ]
        ]

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        if not self._token:
            self._token = self._new_token()
        for _ in range(_SENT_AT_MOST):
            response = self._send(method, path, arguments)
            if response.status_code != 503 or "retry-after" not in response.headers:
                break
            time.sleep(float(response.headers["retry-after"]))  # see `sqlite.WritersInTurn`
        if response.status_code == 401:  # the token has a day; a run followed for longer needs another
            self._token = self._new_token()
            response = self._send(method, path, arguments)
        if response.is_error:
            raise AirflowApiError(
                f"{method} {path}: Airflow answers {response.status_code}, {_detail(response)}",
                response.status_code,
            )
        return response.json() if response.content else None

    def _send(self, method: str, path: str, arguments: dict[str, Any]) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        return self._http.request(method, f"/api/v2/{path}", headers=headers, **arguments)

    def _new_token(self) -> str:
        if self._login is None:
            response = self._http.get("/auth/token")
        else:
            name, password = self._login
            response = self._http.post("/auth/token", json={"username": name, "password": password})
        if response.is_error:
            raise AirflowApiError(
                f"/auth/token: Airflow answers {response.status_code}, {_detail(response)}",
                response.status_code,
            )
        return response.json()["access_token"]


def _detail(response: httpx.Response) -> str:
    try:
        detail = response.json().get("detail")
    except (ValueError, AttributeError):
        detail = None
    return str(detail or response.text)[:2000]
