"""ALCE's rules for the citations of one statement (arXiv 2305.14627, section 4), as an oracle."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence


def alce(cited: Sequence[int], supports: Callable[[Collection[int]], bool]) -> tuple[float, float]:
    """Precision and recall over any judge of support, word for word."""
    recall = float(bool(cited) and supports(cited))
    precise = 0
    for one in cited:
        others = [each for each in cited if each != one]
        irrelevant = not supports([one]) and bool(others) and supports(others)
        precise += bool(recall) and not irrelevant
    return (precise / len(cited) if cited else 0.0), recall
