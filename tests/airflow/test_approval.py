from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException, TaskAwaitingInput

from jora_tasks.airflow.approval import PromoteOperator, PromotionApproval, question, who


def registration(**changes: Any) -> dict[str, Any]:
    checks = [
        {"name": "exact_match", "expected": "above 0", "actual": "[0.1, 0.3]", "passed": True},
        {"name": "canary", "expected": "none", "actual": "<b>1</b> | x", "passed": False},
    ]
    told = {
        "name": "papers",
        "version": 7,
        "promotion": "approval",
        "awaiting_approval": True,
        "verdict": {"alias": "champion", "checks": checks, "champion": {"version": 3, "digest": "d"}},
    }
    return told | changes


def context(**conf: Any) -> Any:
    return {
        "dag_run": SimpleNamespace(dag_id="adapter_training", run_id="manual__1", conf=conf),
        "triggering_asset_events": {},
        "task_instance": SimpleNamespace(id="00000000-0000-0000-0000-000000000000"),
        "outlet_events": {},
    }


def test_the_question_shows_each_check_and_lets_nothing_through():
    asked = question(registration())
    assert "| exact\\_match | above 0 | \\[0.1, 0.3\\] | passed |" in asked
    assert "\\<b\\>1\\</b\\> \\| x | **failed**" in asked
    assert "replace version 3" in asked
    assert "(/jora/adapters/papers/versions/7)" in asked
    assert "no champion yet" in question(registration(verdict={"alias": "champion", "checks": []}))


@pytest.mark.parametrize("address", ["https://elsewhere.example", "www.elsewhere.example", "a@b.example"])
def test_no_address_in_a_name_becomes_a_link(address):
    check = {"name": address, "expected": "x", "actual": "y", "passed": True}
    asked = question(registration(verdict={"alias": "champion", "checks": [check]}))
    assert (
        address not in asked
        and address.replace("://", ":\u200b//").replace("www.", "www\u200b.").replace("@", "\u200b@") in asked
    )


def test_what_awaits_no_approval_is_skipped():
    task = PromotionApproval(task_id="approval", registration=registration(awaiting_approval=False))
    with pytest.raises(AirflowSkipException, match="version 7 awaits no approval"):
        task.execute(context())


def test_the_answer_is_waited_for_as_long_as_the_spec_says(home, monkeypatch):
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        "airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **told: asked.update(told)
    )
    task = PromotionApproval(task_id="approval", registration=registration())
    with pytest.raises(TaskAwaitingInput) as waiting:
        task.execute(context(**{"registry.approval_hours": 5.0}))
    assert waiting.value.timeout == timedelta(hours=5)
    assert asked["defaults"] == ["Reject"]  # what a timeout means
    assert asked["subject"] == "Make papers version 7 the champion?"
    assert asked["body"] == question(registration())
    assert list(asked["params"]) == ["reason"]


def test_an_answer_has_one_field_whatever_the_run_s_settings_are():
    task = PromotionApproval(task_id="approval", registration=registration(), params={"training.epochs": 3})
    event = {
        "chosen_options": ["Approve"],
        "params_input": {"reason": "good"},
        "responded_by_user": {"id": "1", "name": "Ada"},
        "responded_at": datetime.now(UTC),
    }
    assert task.execute_complete(context(), event)["params_input"] == {"reason": "good"}
    with pytest.raises(ValueError, match="does not match"):
        task.execute_complete(context(), event | {"params_input": {"training.epochs": 5}})


def test_a_yes_moves_the_champion_in_place_of_the_one_judged(home, echo):
    answer = {"responded_by_user": {"id": "1", "name": "Ada"}, "params_input": {"reason": "--looks good"}}
    task = PromoteOperator(task_id="promote", registration=registration(), approval=answer, command=echo)
    options = task.execute(context())["options"]
    assert options[3:] == ["7", "--set", "name=papers", "--expect=3", "--by=Ada", "--reason=--looks good"]
    first = registration(verdict={"alias": "champion", "checks": [], "champion": None})
    task = PromoteOperator(task_id="promote", registration=first, approval={}, command=echo)
    options = task.execute(context())["options"]
    assert options[-3:] == ["--expect=none", "--by=no one", "--reason=Approved in Airflow."]


def test_the_answerer_is_named():
    assert who({"responded_by_user": {"id": "ada", "name": ""}}) == "ada"
