"""How a stage's command can fail, as exceptions that Airflow's retry rules name.

Bad input and lack of memory fail at once, since no further try would mend them; a preempted stage is tried
again soon, since it goes on from its saved state; any other failure is tried again as the DAG says.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from jora_tasks.airflow.child import Outcome
from jora_tasks.errors import InputError, OutOfMemory, Preempted


class BadInput(AirflowFailException):
    """What the user can mend, in one sentence."""


class StageOutOfMemory(AirflowFailException):
    """The device's or the host's memory did not suffice."""


class StageFailed(AirflowException):
    """The stage's command failed for another reason."""


class StagePreempted(StageFailed):
    """The stage was stopped from outside and has saved its state."""


class StageCancelled(AirflowException):
    """The task was told to stop while its stage was running."""


RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        RetryRule(
            exception="jora_tasks.airflow.failures.StagePreempted",
            action=RetryAction.RETRY,
            retry_delay=timedelta(seconds=5),
            reason="Preempted: the next try goes on from the saved state.",
        ),
        RetryRule(
            exception=[
                "jora_tasks.errors.InputError",
                "jora_tasks.airflow.failures.BadInput",
                "jora_tasks.airflow.failures.StageOutOfMemory",
            ],
            action=RetryAction.FAIL,
            reason="Another try would end alike.",
        ),
    ]
)

_MEMORY_SIGNS = ("RESOURCE_EXHAUSTED", "MemoryError")
_SIGTERM = (-15, 128 + 15)


def failure(stage: str, outcome: Outcome) -> AirflowException | None:
    """What the task raises for this outcome; None for success."""
    said = outcome.last_line.removeprefix("jora: ")
    if outcome.code == 0:
        return None
    if outcome.code == InputError.exit_code:
        return BadInput(said)
    if outcome.code == OutOfMemory.exit_code or any(sign in said for sign in _MEMORY_SIGNS):
        return StageOutOfMemory(said)
    if outcome.code == Preempted.exit_code or outcome.code in _SIGTERM:
        return StagePreempted(f"Stage {stage} was stopped from outside: {said}")
    return StageFailed(f"Stage {stage} ended with exit code {outcome.code}: {said}")


def last_json(stdout: str, stage: str) -> dict[str, Any]:
    """The JSON object that is the command's last line.

    Raises:
      StageFailed: if there is none.
    """
    lines = [line for line in stdout.splitlines() if line.strip()]
    try:
        result = json.loads(lines[-1])
    except (IndexError, ValueError):
        result = None
    if not isinstance(result, dict):
        raise StageFailed(f"Stage {stage} printed no JSON object as its last line.")
    return result
