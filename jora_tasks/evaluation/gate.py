"""The promotion gate: may this adapter become the champion?

Rule: exact match is better than that of the base model with the same contexts, and than that of
the current champion, on the same questions: the paired interval lies above 0. The first adapter
of a line has only the base to beat. The gate decides from a report alone and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

CHAMPION, CANDIDATE = "champion", "candidate"


def judge(report: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict on an evaluation's report.

    Args:
      report: ``confidence``; ``groups``, the number of independent groups of questions;
        ``difference`` with ``against``, ``exact_match`` and ``interval``; and ``champion``, None or
        a mapping with ``version`` and ``difference`` (None if the two cannot be compared, then with
        a ``reason``).

    Returns:
      ``alias`` ("champion" if every check passed, else "candidate") and ``checks``, each with
      ``name``, ``expected``, ``actual`` and ``passed``.
    """
    confidence = report["confidence"]
    checks = [_enough(report["groups"], confidence), _better("base", report["difference"], confidence)]
    champion = report.get("champion")
    if champion is not None:
        if champion["difference"] is None:
            checks.append(
                check(
                    "comparable_with_champion",
                    f"answers of champion version {champion['version']} to the same questions",
                    champion["reason"],
                    False,
                )
            )
        else:
            checks.append(_better("champion", champion["difference"], confidence))
    return verdict(checks)


def check(name: str, expected: str, actual: str, passed: bool) -> dict[str, Any]:
    """One check of a verdict."""
    return {"name": name, "expected": expected, "actual": actual, "passed": passed}


def verdict(checks: list[dict[str, Any]]) -> dict[str, Any]:
    """The verdict that these checks add up to."""
    return {"alias": CHAMPION if all(each["passed"] for each in checks) else CANDIDATE, "checks": checks}


def fewest_groups(confidence: float) -> int:
    """Fewest independent groups on which a two-sided sign test can reach the confidence at all.

    With fewer, even winning every question has a chance above ``1 - confidence`` between equals,
    while the bootstrap, which sees no loss to draw, would report an interval of no width.

    >>> fewest_groups(0.95)
    6
    """
    return math.ceil(math.log2(2 / (1 - confidence)) - 1e-9)


def _enough(groups: int, confidence: float) -> dict[str, Any]:
    fewest = fewest_groups(confidence)
    return check(
        "enough_questions",
        f"at least {fewest} independent groups of test questions",
        f"{groups}",
        groups >= fewest,
    )


def _better(than: str, difference: Mapping[str, Any], confidence: float) -> dict[str, Any]:
    low, high = difference["interval"]["exact_match"]
    return check(
        f"better_than_{than}",
        f"{confidence:.0%} interval of exact match minus {difference['against']} above 0",
        f"{difference['exact_match']:+.3f} [{low:+.3f}, {high:+.3f}]",
        low > 0,
    )
