"""Bins of retrieval scores."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jora_tasks.evaluation.calibration import score_bins, wilson


def test_by_hand() -> None:
    scored = [(0.1, False), (0.2, False), (0.3, True), (0.4, False), (0.5, True), (0.6, True)]
    bins = score_bins(scored, bins=2)
    assert [(each["low"], each["high"], each["n"]) for each in bins] == [(0.1, 0.3, 3), (0.4, 0.6, 3)]
    assert [each["relevant"] for each in bins] == [pytest.approx(1 / 3), pytest.approx(2 / 3)]


def test_nothing_scored() -> None:
    assert score_bins([]) == []


@given(right=st.integers(0, 50), wrong=st.integers(1, 50))
def test_interval_is_scipys(right: int, wrong: int) -> None:
    n = right + wrong
    oracle = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right / n, n) == pytest.approx([oracle.low, oracle.high], abs=1e-6)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9]), st.booleans()), min_size=1))
def test_each_chunk_is_in_one_bin(scored: list[tuple[float, bool]]) -> None:
    bins = score_bins(scored)
    assert sum(each["n"] for each in bins) == len(scored)
    found = sum(each["n"] * each["relevant"] for each in bins)
    assert found == pytest.approx(sum(relevant for _, relevant in scored))
    assert all(one["high"] < other["low"] for one, other in pairwise(bins))
