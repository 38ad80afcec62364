"""The gate's rule, case by case."""

from __future__ import annotations

from typing import Any

import pytest

from jora_tasks.evaluation.gate import fewest_groups, judge


def difference(low: float, high: float, against: str = "base_with_contexts") -> dict[str, Any]:
    return {"against": against, "exact_match": (low + high) / 2, "interval": {"exact_match": [low, high]}}


def report(base: tuple[float, float], champion: Any = None, groups: int = 80) -> dict[str, Any]:
    return {"confidence": 0.95, "groups": groups, "difference": difference(*base), "champion": champion}


def against(low: float, high: float) -> dict[str, Any]:
    return {"version": 3, "difference": difference(low, high, "champion_with_contexts")}


@pytest.mark.parametrize(
    ("base", "champion", "alias", "failed"),
    [
        ((0.2, 0.5), None, "champion", []),
        ((-0.1, 0.5), None, "candidate", ["better_than_base"]),
        ((0.0, 0.5), None, "candidate", ["better_than_base"]),
        ((-0.5, -0.1), None, "candidate", ["better_than_base"]),
        ((0.2, 0.5), against(0.01, 0.1), "champion", []),
        ((0.2, 0.5), against(0.0, 0.0), "candidate", ["better_than_champion"]),
        ((-0.2, 0.5), against(-0.1, 0.1), "candidate", ["better_than_base", "better_than_champion"]),
        (
            (0.2, 0.5),
            {"version": 3, "difference": None, "reason": "another base model"},
            "candidate",
            ["comparable_with_champion"],
        ),
    ],
)
def test_rule(base: tuple[float, float], champion: Any, alias: str, failed: list[str]) -> None:
    verdict = judge(report(base, champion))
    assert verdict["alias"] == alias
    assert [check["name"] for check in verdict["checks"] if not check["passed"]] == failed


def test_a_check_says_what_was_expected_and_found() -> None:
    found = judge(report((0.25, 0.5)))["checks"][1]
    assert found == {
        "name": "better_than_base",
        "expected": "95% interval of exact match minus base_with_contexts above 0",
        "actual": "+0.375 [+0.250, +0.500]",
        "passed": True,
    }


def test_a_handful_of_questions_promotes_nothing() -> None:
    """All won, so the bootstrap's interval is [1, 1]; five coin tosses do that one time in 32."""
    assert judge(report((1.0, 1.0), groups=5))["alias"] == "candidate"
    assert judge(report((1.0, 1.0), groups=6))["alias"] == "champion"


@pytest.mark.parametrize(("confidence", "groups"), [(0.75, 3), (0.9, 5), (0.95, 6), (0.99, 8)])
def test_fewest_groups(confidence: float, groups: int) -> None:
    assert fewest_groups(confidence) == groups
    assert 2 * 0.5**groups <= 1 - confidence + 1e-12 < 2 * 0.5 ** (groups - 1)
