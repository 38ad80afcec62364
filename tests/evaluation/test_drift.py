"""The stability index by hand and by simulation, and what is made of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jora_tasks.evaluation.drift import (
    LARGE,
    SOME,
    STABLE,
    Profile,
    _chi_square_95,
    compare_profiles,
    level_of,
    population_stability,
    stability_index,
)


def test_index_by_hand() -> None:
    """(0.25 - 0.5) ln(0.25 / 0.5) + (0.75 - 0.5) ln(0.75 / 0.5) = 0.17329 + 0.10137."""
    assert stability_index([1, 1], [1, 3]) == pytest.approx(0.25 * math.log(2) + 0.25 * math.log(1.5))
    shares = stability_index([0.2, 0.3, 0.5], [0.3, 0.3, 0.4])
    assert shares == pytest.approx(0.1 * math.log(1.5) - 0.1 * math.log(0.8))


def test_samples_by_hand() -> None:
    """Two bins cut at 2.5: counts 2 and 2 then, 1 and 3 now, each raised by a half."""
    found = population_stability([1, 2, 3, 4], [2, 3, 4, 5], bins=2)
    assert found["psi"] == pytest.approx(stability_index([2.5, 2.5], [1.5, 3.5]))
    assert found["chance"] == pytest.approx(3.8415 * (1 / 4 + 1 / 4), rel=0.03)


@pytest.mark.parametrize("freedom", range(1, 16))
def test_quantile_of_chi_square(freedom: int) -> None:
    assert _chi_square_95(freedom) == pytest.approx(stats.chi2.ppf(0.95, freedom), rel=0.03)


def test_equal_populations_seldom_exceed_chance() -> None:
    generator = np.random.default_rng(0)
    exceeded = []
    for _ in range(400):
        found = population_stability(generator.normal(size=300), generator.normal(size=200))
        exceeded.append(found["psi"] > found["chance"])
    assert np.mean(exceeded) <= 0.09


shares = st.lists(st.integers(1, 50), min_size=4, max_size=4)


@given(shares, shares)
def test_index_is_symmetric_and_zero_only_between_equals(then: list[int], now: list[int]) -> None:
    found = stability_index(then, now)
    assert found >= -1e-12
    assert stability_index(now, then) == pytest.approx(found)
    assert stability_index(then, [3 * each for each in then]) == pytest.approx(0)


samples = st.lists(st.integers(0, 30), min_size=1, max_size=40)


@given(samples, samples)
def test_any_two_samples_have_a_finite_index(then: list[int], now: list[int]) -> None:
    found = population_stability(then, now)
    assert 0 <= found["psi"] + 1e-12 < math.inf
    assert population_stability(then, then)["psi"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("psi", "chance", "level"),
    [
        (0.05, 0.0, STABLE),
        (0.15, 0.1, SOME),
        (0.15, 0.2, STABLE),
        (0.25, 0.1, LARGE),
        (0.4, 0.5, STABLE),
    ],
)
def test_levels(psi: float, chance: float, level: str) -> None:
    assert level_of(psi, chance) == level


def profile(shift: float = 0.0, without: float = 0.1, retriever: str = "dense 1.0") -> Profile:
    generator = np.random.default_rng(0)
    return Profile(
        document_lengths=(generator.normal(900 + shift * 400, 100, 400)).tolist(),
        question_lengths=generator.normal(70, 5, 400).tolist(),
        top_scores=generator.normal(0.6 - 0.2 * shift, 0.1, 400).tolist(),
        without_answer=[i < without * 400 for i in range(400)],
        retriever=retriever,
    )


def test_what_moved_is_told_and_what_did_not() -> None:
    levels = {each["name"]: each["level"] for each in compare_profiles(profile(), profile(1.0, without=0.25))}
    assert levels == {
        "characters of a document": LARGE,
        "characters of a question": STABLE,
        "score of the best chunk of a question": LARGE,
        "questions whose contexts hold no known answer": LARGE,
    }
    assert {each["level"] for each in compare_profiles(profile(), profile())} == {STABLE}


def test_scores_of_another_retriever_are_not_compared() -> None:
    names = [each["name"] for each in compare_profiles(profile(), profile(retriever="lexical 0.0"))]
    assert "score of the best chunk of a question" not in names
