"""Whether documents and questions are still like those that the champion was trained on.

Distributions are compared by the population stability index, ``sum((c - r) * ln(c / r))`` over bins with
shares r then and c now (Siddiqi, "Credit Risk Scorecards", 2006, chapter 9). By custom, below 0.1 nothing
happened and above 0.25 much did. Samples of one and the same population differ as well: there the index
is about ``(1/n + 1/m)`` times a chi-square variable of bins - 1 degrees of freedom (Yurdakul, "Statistical
Properties of Population Stability Index", 2018), so that what lies below its 95 % quantile is no drift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

STABLE, SOME, LARGE = "stable", "some drift", "large drift"
_SOME, _LARGE = 0.1, 0.25
# By how much a share has to move.
_SOME_SHARE, _LARGE_SHARE = 0.05, 0.1
_NORMAL_95 = 1.6449


@dataclass(frozen=True)
class Profile:
    """What documents and questions look like at one time.

    Attributes:
      document_lengths: characters of each document.
      question_lengths: characters of each question.
      top_scores: what the best chunk found for each question scored.
      without_answer: for each question, whether no chunk found has a known answer in it.
      retriever: how was searched; scores of different retrievers are not compared.
    """

    document_lengths: Sequence[int]
    question_lengths: Sequence[int]
    top_scores: Sequence[float]
    without_answer: Sequence[bool]
    retriever: str


def stability_index(then: ArrayLike, now: ArrayLike) -> float:
    """The index of two lists of shares (or counts), none of them 0.

    >>> round(stability_index([1, 1], [1, 3]), 4)
    0.2747
    """
    r, c = (np.asarray(each, dtype=np.float64) / np.sum(each) for each in (then, now))
    return float(np.sum((c - r) * np.log(c / r)))


def population_stability(then: Sequence[float], now: Sequence[float], bins: int = 10) -> dict[str, float]:
    """The index of two samples, over bins that each hold about the same share of the first.

    Every bin's count is raised by a half, so that an empty one does not make it infinite.

    Returns:
      ``psi``, and ``chance``: what it exceeds in 5 % of the cases where nothing changed.
    """
    edges = np.unique(np.quantile(then, np.linspace(0, 1, bins + 1)[1:-1]))
    counts = [
        np.bincount(np.searchsorted(edges, each, side="left"), minlength=edges.size + 1) + 0.5
        for each in (then, now)
    ]
    chance = _chi_square_95(edges.size) * (1 / len(then) + 1 / len(now)) if edges.size else 0.0
    return {"psi": stability_index(*counts), "chance": chance}


def compare_profiles(then: Profile, now: Profile) -> list[dict[str, Any]]:
    """Each figure: ``name``, ``then`` and ``now`` (a median, mean or share), ``level``, and for distributions
    ``psi`` and ``chance``. What either time lacks is left out."""
    figures = [
        _distribution("characters of a document", np.median, then.document_lengths, now.document_lengths),
        _distribution("characters of a question", np.median, then.question_lengths, now.question_lengths),
    ]
    if then.retriever == now.retriever:
        name = "score of the best chunk of a question"
        figures.append(_distribution(name, np.mean, then.top_scores, now.top_scores))
    if then.without_answer and now.without_answer:
        before, after = (float(np.mean(each)) for each in (then.without_answer, now.without_answer))
        moved = abs(after - before)
        level = LARGE if moved >= _LARGE_SHARE else SOME if moved >= _SOME_SHARE else STABLE
        name = "questions whose contexts hold no known answer"
        figures.append({"name": name, "then": before, "now": after, "level": level})
    return [figure for figure in figures if figure]


def level_of(psi: float, chance: float) -> str:
    """What the index says, where chance alone would reach so far."""
    if psi < _SOME or psi <= chance:
        return STABLE
    return LARGE if psi >= _LARGE else SOME


def _distribution(name: str, middle: Any, then: Sequence[float], now: Sequence[float]) -> dict[str, Any]:
    if not len(then) or not len(now):
        return {}
    found = population_stability(then, now)
    return {
        "name": name,
        "then": float(middle(then)),
        "now": float(middle(now)),
        **found,
        "level": level_of(**found),
    }


def _chi_square_95(freedom: int) -> float:
    """95 % quantile of a chi-square variable (Wilson and Hilferty, 1931), within 1 % from 2 degrees on."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + _NORMAL_95 * math.sqrt(part)) ** 3
