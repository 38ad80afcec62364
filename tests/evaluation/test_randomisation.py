"""The sign-flip test: against every assignment by hand, scipy, and its level between equals."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jora_tasks.evaluation.randomisation import sign_flip_p_value

differences = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=9)


@given(values=differences, clusters=st.lists(st.sampled_from("abcdefg"), min_size=9, max_size=9))
def test_few_clusters_are_enumerated(values: list[float], clusters: list[str]) -> None:
    ids = clusters[: len(values)]
    sums = [sum(v for v, id_ in zip(values, ids, strict=True) if id_ == name) for name in sorted(set(ids))]
    all_sums = [
        sum(sign * each for sign, each in zip(signs, sums, strict=True))
        for signs in product((-1, 1), repeat=len(sums))
    ]
    by_hand = np.mean([abs(each) >= abs(sum(sums)) - 1e-12 for each in all_sums])
    assert sign_flip_p_value(values, clusters=ids) == pytest.approx(by_hand)


def test_equals_scipy() -> None:
    generator = np.random.default_rng(0)
    for size, tolerance in ((8, 1e-12), (60, 0.02)):
        values = generator.normal(0.2, 1, size)
        oracle = stats.permutation_test(
            (values, np.zeros(size)),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=20000 if size > 8 else np.inf,
            rng=1,
        )
        assert sign_flip_p_value(values, samples=20000) == pytest.approx(oracle.pvalue, abs=tolerance)


def test_between_equals_a_twentieth_is_below_0_05() -> None:
    generator = np.random.default_rng(0)
    ids = [str(i // 3) for i in range(60)]
    found = []
    for trial in range(400):
        values = np.repeat(generator.normal(size=20), 3)  # three phrasings of a fact go together
        found.append(sign_flip_p_value(values, clusters=ids, samples=300, seed=trial))
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.08


@given(values=st.lists(st.floats(-1, 1), min_size=1, max_size=30), scale=st.floats(0.1, 10))
def test_neither_scale_nor_direction_matters_and_it_is_never_0(values: list[float], scale: float) -> None:
    found = sign_flip_p_value(values, samples=200)
    assert 0 < found <= 1
    assert sign_flip_p_value([-value for value in values], samples=200) == found
    assert sign_flip_p_value([scale * value for value in values], samples=200) == pytest.approx(
        found, abs=0.03
    )


def test_no_difference_at_all_has_p_1() -> None:
    assert sign_flip_p_value([0.0] * 50) == 1.0
