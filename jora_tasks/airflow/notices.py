"""Word to people outside when a task has failed for good, or a run is late.

``$JORA_NOTIFY`` is the URL of a webhook, which gets the notice as a JSON object, or the dotted path of a
function, which gets it as a dictionary: ``event`` (failed or late), ``dag_id``, ``run_id``, ``task_id``,
``reason`` and ``url``, where the run is seen. ``$JORA_DEADLINE_HOURS`` says when a run is late.
A notice that cannot be sent is logged and fails nothing; values of secrets are masked in it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from airflow.sdk.module_loading import import_string

from jora_tasks.airflow.connections import webhook
from jora_tasks.variables import number_of

NOTIFY, DEADLINE_HOURS = "JORA_NOTIFY", "JORA_DEADLINE_HOURS"

_SECRET_NAME = re.compile(r"token|secret|passw|credential|_key$|fernet|conn_|^jora_notify$", re.IGNORECASE)
_SHORTEST_SECRET = 6
_TIMEOUT_SECONDS = 10.0
_ENDED = ("success", "failed")

log = logging.getLogger(__name__)


def failed(context: Mapping[str, Any]) -> None:
    """``on_failure_callback`` of a task: called once it is not tried again."""
    task = context["task_instance"]
    send("failed", task.dag_id, task.run_id, task.task_id, str(context.get("exception") or "It was killed."))


async def late(hours: float, context: Mapping[str, Any] | None = None) -> None:
    """Callback of the deadline.

    Airflow drops the deadline of a run that succeeded in time, but calls for one that failed before it too.
    """
    run = dict((context or {}).get("dag_run") or {})
    if run.get("state") in _ENDED:
        return
    reason = f"The run is not done {hours:g} hours after it was queued."
    await asyncio.to_thread(send, "late", str(run.get("dag_id")), str(run.get("dag_run_id")), "", reason)


def deadline() -> DeadlineAlert | None:
    """The alert that ``$JORA_DEADLINE_HOURS`` asks for, if it does."""
    hours = number_of(DEADLINE_HOURS, 0)
    if hours <= 0:
        return None
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=hours),
        callback=AsyncCallback(late, kwargs={"hours": hours}),
    )


def send(event: str, dag_id: str, run_id: str, task_id: str, reason: str) -> None:
    """Send a notice where ``$JORA_NOTIFY`` says, or the connection that stands for it."""
    base = os.environ.get("AIRFLOW__API__BASE_URL", "").rstrip("/")
    notice = {
        "event": event,
        "dag_id": dag_id,
        "run_id": run_id,
        "task_id": task_id,
        "reason": masked(reason),
        "url": f"{base}/dags/{quote(dag_id)}/runs/{quote(run_id)}",
    }
    try:
        target = os.environ.get(NOTIFY) or webhook()
        if not target:
            return
        if "://" in target:
            import httpx

            httpx.post(target, json=notice, timeout=_TIMEOUT_SECONDS).raise_for_status()
        else:
            import_string(target)(notice)
    except Exception as error:  # whatever the receiver does: the run is not its business
        # Not the error's own words, which may hold the address, and that a secret.
        log.warning("The notice of %s %s could not be sent: %s", dag_id, run_id, type(error).__name__)


def masked(text: str) -> str:
    """The text without the values of environment variables that are secrets by their name."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    return text
