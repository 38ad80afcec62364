"""The promotion gate: may this adapter become the champion?

A measure rises if its paired interval lies on the better side of 0: exact match by default, against the
base model with the same contexts and against the current champion, on the same questions. It does not
fall if that interval lies above minus a margin (a non-inferiority test, as of Piaggio et al., "Reporting
of Noninferiority and Equivalence Randomized Trials", JAMA 2012). The first adapter of a line has only the
base to beat. The gate decides from a report alone and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jora_tasks.spec import LOWER_IS_BETTER, GateConfig

CHAMPION, CANDIDATE = "champion", "candidate"
BASE = "base"
CHAMPION_UNCHANGED = "champion_unchanged"
Check = dict[str, Any]
_NAMED = 10  # canary questions named in a check


def judge(report: Mapping[str, Any], gate: GateConfig) -> list[Check]:
    """The checks of an evaluation's report.

    Args:
      report: ``confidence``; ``questions`` and ``clusters``, with ``n``, the independent ones of them;
        ``difference`` from the base, with ``against`` and, by measure, the difference and its ``interval``;
        ``slices`` and ``canary`` where the gate asks for them; and ``champion``, None or a mapping with
        ``version`` and ``difference`` (None if the two cannot be compared, then with a ``reason``).
      gate: what is asked.

    Returns:
      Each with ``name``, ``expected``, ``actual`` and ``passed``.
    """
    checks = [_enough(report, gate)]
    differences = {BASE: report["difference"]}
    champion = report.get("champion")
    if champion is not None and (CHAMPION in gate.rise_against or gate.must_not_fall):
        if champion["difference"] is None:
            expected = f"answers of champion version {champion['version']} to the same questions"
            checks.append(check("comparable_with_champion", expected, champion["reason"], False))
        else:
            differences[CHAMPION] = champion["difference"]
    for opponent, difference in differences.items():
        checks += _compared(opponent, difference, gate, report["confidence"])
    for name in gate.slices:
        for value, part in report["slices"][name].items():
            checks += _within_slice(f"{name}={value}", part, gate, report["confidence"])
    if gate.canary_path:
        checks.append(_canary(report["canary"], gate.max_regressions))
    return checks


def check(name: str, expected: str, actual: str, passed: bool) -> Check:
    """One check of a verdict."""
    return {"name": name, "expected": expected, "actual": actual, "passed": passed}


def champion_unchanged(compared: int | None, current: int | None) -> Check:
    """That the champion is still the version that the adapter was compared with; None stands for none."""
    return check(
        CHAMPION_UNCHANGED,
        f"champion to beat: {_version(compared)}, as evaluated",
        _version(current),
        compared == current,
    )


def verdict(checks: Sequence[Check]) -> dict[str, Any]:
    """What these checks add up to: ``alias``, whether all ``passed``, and the ``checks``."""
    passed = all(each["passed"] for each in checks)
    return {"alias": CHAMPION if passed else CANDIDATE, "passed": passed, "checks": list(checks)}


def fewest_clusters(confidence: float) -> int:
    """Fewest independent clusters on which a two-sided sign test can reach the confidence at all.

    With fewer, even winning every question has a chance above ``1 - confidence`` between equals,
    while the bootstrap, which sees no loss to draw, would report an interval of no width.

    >>> fewest_clusters(0.95)
    6
    """
    return math.ceil(math.log2(2 / (1 - confidence)) - 1e-9)


def _enough(report: Mapping[str, Any], gate: GateConfig) -> Check:
    questions, clusters = report["questions"], report["clusters"]["n"]
    fewest = fewest_clusters(report["confidence"])
    return check(
        "enough_questions",
        f"at least {gate.min_questions} test questions in at least {fewest} independent clusters",
        f"{questions} in {clusters}",
        questions >= gate.min_questions and clusters >= fewest,
    )


def _compared(
    opponent: str, difference: Mapping[str, Any], gate: GateConfig, confidence: float
) -> Iterator[Check]:
    """The checks against one opponent."""
    rising = gate.must_rise if opponent in gate.rise_against else ()
    for measure in rising:
        yield _bounded(f"{measure}_better_than_{opponent}", measure, difference, confidence, 0.0)
    for measure, margin in gate.must_not_fall.items():
        yield _bounded(f"{measure}_no_worse_than_{opponent}", measure, difference, confidence, -margin)


def _bounded(
    name: str, measure: str, difference: Mapping[str, Any], confidence: float, bound: float
) -> Check:
    """That the interval of a difference lies on the better side of a bound; a measure without figures, or
    with too few for an interval, is no measure to go by."""
    lower = measure in LOWER_IS_BETTER
    side, bound = ("below", 0.0 - bound) if lower else ("above", bound)
    expected = f"{confidence:.0%} interval of {measure} minus {difference['against']} {side} {bound:g}"
    if measure not in difference["interval"]:
        return check(name, expected, "no question has this figure in both arms", False)
    fewest, clusters = fewest_clusters(confidence), difference["clusters_of"][measure]
    if clusters < fewest:
        wanted = f"{expected}, in at least {fewest} independent clusters"
        return check(name, wanted, f"{difference['of'][measure]} questions in {clusters}", False)
    low, high = difference["interval"][measure]
    actual = f"{difference[measure]:+.3f} [{low:+.3f}, {high:+.3f}]"
    return check(name, expected, actual, high < bound if lower else low > bound)


def _within_slice(
    where: str, part: Mapping[str, Any], gate: GateConfig, confidence: float
) -> Iterator[Check]:
    """That no measure falls in one slice; one with too few questions for an interval tells nothing."""
    fewest = fewest_clusters(confidence)
    for opponent, difference in part["differences"].items():
        for measure, margin in gate.must_not_fall.items():
            name = f"{measure}_no_worse_than_{opponent} where {where}"
            found = _bounded(name, measure, difference, confidence, -margin)
            if difference["clusters_of"].get(measure, 0) < fewest:
                expected = f"no fall, if there are at least {fewest} independent clusters"
                count, clusters = (difference[each].get(measure, 0) for each in ("of", "clusters_of"))
                found = check(name, expected, f"{count} questions in {clusters}", True)
            yield found


def _canary(canary: Mapping[str, Any], most: int) -> Check:
    opponent = f"champion version {canary['version']}" if canary["version"] else "the base"
    found = canary["regressions"]
    named = f": {', '.join(found[:_NAMED])}{' …' if len(found) > _NAMED else ''}" if found else ""
    return check(
        "canary_regressions",
        f"at most {most} of {canary['questions']} canary questions that {opponent} answers right and the "
        "adapter does not",
        f"{len(found)}{named}",
        len(found) <= most,
    )


def _version(version: int | None) -> str:
    return "none" if version is None else f"version {version}"
