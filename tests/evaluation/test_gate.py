"""The gate's rules, case by case."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jora_tasks.errors import InputError
from jora_tasks.evaluation.gate import fewest_clusters, judge, verdict
from jora_tasks.evaluation.page import render_verdict
from jora_tasks.spec import GateConfig, parse_spec

MEASURES = ("exact_match", "f1")


def difference(low: float, high: float, against: str = "base_with_contexts", **others: Any) -> dict[str, Any]:
    intervals = {"exact_match": [low, high], "f1": [low, high], **others}
    return {
        "against": against,
        **{measure: sum(each) / 2 for measure, each in intervals.items()},
        "interval": intervals,
        "of": dict.fromkeys(intervals, 160),
        "clusters_of": dict.fromkeys(intervals, 80),
    }


def report(base: Any, champion: Any = None, questions: int = 160, groups: int = 80) -> dict[str, Any]:
    return {
        "confidence": 0.95,
        "questions": questions,
        "clusters": {"n": groups},
        "difference": base if isinstance(base, dict) else difference(*base),
        "champion": champion,
    }


def against(low: float, high: float, **others: Any) -> dict[str, Any]:
    return {"version": 3, "difference": difference(low, high, "champion_with_contexts", **others)}


def failed(found: dict[str, Any], **gate: Any) -> list[str]:
    return [check["name"] for check in judge(found, GateConfig(**gate)) if not check["passed"]]


@pytest.mark.parametrize(
    ("base", "champion", "missed"),
    [
        ((0.2, 0.5), None, []),
        ((-0.1, 0.5), None, ["exact_match_better_than_base"]),
        ((0.0, 0.5), None, ["exact_match_better_than_base"]),
        ((-0.5, -0.1), None, ["exact_match_better_than_base"]),
        ((0.2, 0.5), against(0.01, 0.1), []),
        ((0.2, 0.5), against(0.0, 0.0), ["exact_match_better_than_champion"]),
        (
            (-0.2, 0.5),
            against(-0.1, 0.1),
            ["exact_match_better_than_base", "exact_match_better_than_champion"],
        ),
        (
            (0.2, 0.5),
            {"version": 3, "difference": None, "reason": "another base model"},
            ["comparable_with_champion"],
        ),
    ],
)
def test_the_embedded_rule(base: tuple[float, float], champion: Any, missed: list[str]) -> None:
    found = report(base, champion)
    assert failed(found) == missed
    alias = "candidate" if missed else "champion"
    assert verdict(judge(found, GateConfig()))["alias"] == alias


def test_a_check_says_what_was_expected_and_found() -> None:
    assert judge(report((0.25, 0.5)), GateConfig())[1] == {
        "name": "exact_match_better_than_base",
        "expected": "95% interval of exact_match minus base_with_contexts above 0",
        "actual": "+0.375 [+0.250, +0.500]",
        "passed": True,
    }


def test_a_handful_of_questions_promotes_nothing() -> None:
    """All won, so the bootstrap's interval is [1, 1]; five coin tosses do that one time in 32."""
    assert failed(report((1.0, 1.0), groups=5)) == ["enough_questions"]
    assert failed(report((1.0, 1.0), groups=6)) == []
    assert failed(report((1.0, 1.0), questions=99), min_questions=100) == ["enough_questions"]


def test_no_worse_within_a_margin() -> None:
    """Surely better than the base, and no worse than the champion by more than the margin."""
    rule = {"rise_against": ("base",), "must_not_fall": {"exact_match": 0.02}}
    assert failed(report((0.2, 0.5), against(-0.01, 0.03)), **rule) == []
    assert failed(report((0.2, 0.5), against(-0.03, 0.03)), **rule) == ["exact_match_no_worse_than_champion"]
    worse = report(difference(0.2, 0.5, f1=[-0.2, 0.1]))
    assert failed(worse, must_not_fall={"f1": 0.1}) == ["f1_no_worse_than_base"]
    assert failed(worse, must_not_fall={"f1": 0.3}) == []


def test_a_measure_of_few_clusters_is_no_measure_to_go_by() -> None:
    few = difference(0.2, 0.5)
    few["clusters_of"]["f1"] = 5
    assert failed(report(few), must_rise=("f1",)) == ["f1_better_than_base"]
    assert failed(report(few), must_rise=("exact_match",)) == []


def test_a_slice_with_few_clusters_of_a_measure_tells_nothing() -> None:
    fallen = difference(-0.5, -0.2)
    found = report((0.2, 0.5)) | {"slices": {"team": {"blue": {"differences": {"base": fallen}}}}}
    rule = {"must_not_fall": {"f1": 0.1}, "slices": ("team",)}
    assert failed(found, **rule) == ["f1_no_worse_than_base where team=blue"]
    fallen["clusters_of"]["f1"] = 5
    assert failed(found, **rule) == []
    for part in ("interval", "of", "clusters_of"):  # no question of the slice has the figure
        del fallen[part]["f1"]
    assert failed(found, **rule) == []


def test_a_margin_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"gate\.must_not_fall"):
        parse_spec({"gate": {"must_not_fall": {"f1": 0.0}}})


def test_a_champion_that_nothing_is_asked_of_need_not_be_comparable() -> None:
    gone = {"version": 3, "difference": None, "reason": "another base model"}
    assert failed(report((0.2, 0.5), gone), rise_against=("base",)) == []
    asked = {"rise_against": ("base",), "must_not_fall": {"f1": 0.1}}
    assert failed(report((0.2, 0.5), gone), **asked) == ["comparable_with_champion"]


def test_a_gate_that_asks_for_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="name a measure in must_rise or must_not_fall"):
        parse_spec({"gate": {"must_rise": []}})


bounds = st.floats(-1, 1)


@given(low=bounds, high=bounds, better=st.floats(0, 1), margin=st.floats(1e-6, 0.5), more=st.floats(0, 0.5))
def test_a_better_adapter_or_a_wider_margin_never_fails_more(
    low: float, high: float, better: float, margin: float, more: float
) -> None:
    def checks(gain: float, margin: float) -> set[str]:
        found = report((low + gain, high + gain), against(low + gain, high + gain))
        return set(failed(found, must_rise=MEASURES, must_not_fall=dict.fromkeys(MEASURES, margin)))

    assert checks(better, margin) <= checks(0, margin)
    assert checks(0, margin + more) <= checks(0, margin)


def test_the_page_shows_each_check_and_escapes_it() -> None:
    evil = "<script>alert(1)</script>"
    judged = verdict(
        judge(report((0.2, 0.5), {"version": 3, "difference": None, "reason": evil}), GateConfig())
    )
    parts = {"key": "0" * 16, "digest": "sha256:a"}
    page = render_verdict(
        {"name": "handbook", **judged, "adapter": parts, "evaluation": parts, "champion": {"version": 3}}
    )
    assert "stays a candidate" in page and "version 3" in page
    assert "comparable with champion" in page and "exact match better than base" in page
    assert evil not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize(("confidence", "groups"), [(0.75, 3), (0.9, 5), (0.95, 6), (0.99, 8)])
def test_fewest_clusters(confidence: float, groups: int) -> None:
    assert fewest_clusters(confidence) == groups
    assert 2 * 0.5**groups <= 1 - confidence + 1e-12 < 2 * 0.5 ** (groups - 1)
