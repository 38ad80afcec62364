"""The champion is moved by a form that was shown to the same person, or not at all."""

from __future__ import annotations

import re

import pytest

from jora_tasks.registry import Registry

PROMOTE = "/jora/adapters/tiny/versions/3/promote"
ROLLBACK = "/jora/adapters/tiny/rollback"
HERE = {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def registry(store):
    return Registry(store.home)


def fields(page: str, reason: str = "it reads better") -> dict[str, str]:
    """What a browser would send of the form on a page."""
    hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))
    return {**hidden, "reason": reason}


def test_promote_and_roll_back_with_reasons(uma, registry):
    page = uma.get(PROMOTE).text
    assert "first champion" in page and "0.700 [0.600, 0.800]" in page
    answer = uma.post(PROMOTE, data=fields(page), headers=HERE)
    assert answer.status_code == 303 and answer.headers["location"] == "/jora/adapters/tiny#history"
    assert registry.get_champion("tiny").version == 3

    second = PROMOTE.replace("3", "2")
    page = uma.get(second).text
    assert "The gate did not pass this version" in page and "from version 3" in page
    assert uma.post(second, data=fields(page, "only <b>to</b> test"), headers=HERE).status_code == 303
    page = uma.get(ROLLBACK).text
    assert "Roll back to version 3?" in page
    assert uma.post(ROLLBACK, data=fields(page, "worse"), headers=HERE).status_code == 303

    moves = registry.transitions("tiny")
    assert [(each.action, each.version, each.previous, each.by, each.reason) for each in moves] == [
        ("promote", 3, None, "uma", "it reads better"),
        ("promote", 2, 3, "uma", "only <b>to</b> test"),
        ("rollback", 3, 2, "uma", "worse"),
    ]
    assert moves[0].verdict
    shown = uma.get("/jora/adapters/tiny").text
    assert "only &lt;b&gt;to&lt;/b&gt; test" in shown and "rolled back" in shown


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_without_a_reason_the_form_is_shown_again(uma, registry, reason):
    answer = uma.post(PROMOTE, data=fields(uma.get(PROMOTE).text, reason), headers=HERE)
    assert answer.status_code == 422 and "Give a reason" in answer.text
    assert registry.transitions("tiny") == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://testserver.elsewhere.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://testserver", "Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_a_form_of_another_site_does_nothing(uma, registry, headers):
    answer = uma.post(PROMOTE, data=fields(uma.get(PROMOTE).text), headers=headers)
    assert answer.status_code == 403 and "another site" in answer.text
    assert registry.transitions("tiny") == []


def test_a_token_is_for_one_person_and_one_act(uma, browser, registry):
    given = fields(uma.get(PROMOTE).text)
    for client, path in ((browser("ulf"), PROMOTE), (uma, PROMOTE.replace("3", "2")), (uma, ROLLBACK)):
        answer = client.post(path, data=given, headers=HERE)
        assert answer.status_code == 403 and "not made for you" in answer.text
    assert uma.post(PROMOTE, data={**given, "champion": "1"}, headers=HERE).status_code == 403
    assert uma.post(PROMOTE, data={**given, "token": "forged"}, headers=HERE).status_code == 403
    assert uma.post(PROMOTE, data={"reason": "r"}, headers=HERE).status_code == 422
    assert registry.transitions("tiny") == []


def test_an_old_form_is_to_be_opened_again(uma, registry, monkeypatch):
    given = fields(uma.get(PROMOTE).text)
    monkeypatch.setattr("jora_tasks.airflow.pages.confirmation.VALID_SECONDS", -1)
    answer = uma.post(PROMOTE, data=given, headers=HERE)
    assert answer.status_code == 403 and "older than an hour" in answer.text


def test_a_viewer_moves_nothing_with_a_token_of_another(uma, vic, registry):
    answer = vic.post(PROMOTE, data=fields(uma.get(PROMOTE).text), headers=HERE)
    assert answer.status_code == 403
    assert registry.transitions("tiny") == []


def test_a_champion_that_moved_meanwhile_is_told(uma, registry):
    given = fields(uma.get(PROMOTE).text)
    registry.promote("tiny", 1, by="someone", reason="faster")
    answer = uma.post(PROMOTE, data=given, headers=HERE)
    assert answer.status_code == 409 and "version 1, not none" in answer.text

    registry.promote("tiny", 2, by="someone", reason="faster")
    given = fields(uma.get(ROLLBACK).text)
    registry.promote("tiny", 3, by="someone", reason="faster still")
    answer = uma.post(ROLLBACK, data=given, headers=HERE)
    assert answer.status_code == 409 and "no longer version 2" in answer.text
    assert registry.get_champion("tiny").version == 3


def test_no_earlier_champion_to_go_back_to(uma):
    answer = uma.get(ROLLBACK)
    assert answer.status_code == 409 and "no earlier champion" in answer.text


def test_what_an_address_says_is_no_word_of_the_page(uma):
    assert "promote this now" not in uma.get(PROMOTE, params={"problem": "promote this now"}).text


@pytest.mark.parametrize(
    "path",
    ["x'y/rollback", "x'y/versions/1/promote", f"tiny/versions/{10**40}/promote", "tiny/versions/0/promote"],
)
def test_odd_addresses_have_no_page(uma, path):
    assert uma.get(f"/jora/adapters/{path}").status_code == 404


def test_models_of_others_in_a_shared_registry_are_let_alone(uma, registry):
    client = registry._client()
    client.create_registered_model("fraud")
    client.create_model_version("fraud", source="models/fraud")
    assert uma.get("/jora/adapters/fraud/versions/1/promote").status_code == 404
    given = fields(uma.get(PROMOTE).text)
    assert uma.post("/jora/adapters/fraud/versions/1/promote", data=given, headers=HERE).status_code == 403
    assert registry.get_champion("fraud") is None
