"""Bootstrap intervals: against scipy, by coverage, and their refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jora_tasks.errors import InputError
from jora_tasks.evaluation import intervals
from jora_tasks.evaluation.intervals import mean_interval, paired_difference


def test_equals_scipy_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).normal(size=80)
    ours = mean_interval(values, samples=20000, seed=3)
    oracle = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=4)
    assert ours.mean == pytest.approx(values.mean())
    assert ours.interval == pytest.approx(list(oracle.confidence_interval), abs=0.01)
    assert (ours.n, ours.clusters) == (80, 80)


def test_coverage_without_clusters() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        estimate = mean_interval(generator.random(80) < 0.4, samples=400, seed=trial)
        covered += estimate.low <= 0.4 <= estimate.high
    assert 0.92 <= covered / 400 <= 0.98


def test_coverage_needs_the_clusters() -> None:
    """Four phrasings of each fact, all right or all wrong: without clusters the interval is too narrow."""
    generator = np.random.default_rng(0)
    ids = [str(i // 4) for i in range(160)]
    clustered = plain = 0
    for trial in range(300):
        values = np.repeat(generator.random(40) < 0.5, 4)
        with_ids = mean_interval(values, clusters=ids, samples=400, seed=trial)
        without = mean_interval(values, samples=400, seed=trial)
        clustered += with_ids.low <= 0.5 <= with_ids.high
        plain += without.low <= 0.5 <= without.high
    assert clustered / 300 >= 0.91
    assert plain / 300 <= 0.80


def test_clusters_of_unequal_size_weigh_by_question() -> None:
    values, ids = [1, 1, 1, 0], ["x", "x", "x", "y"]
    estimate = mean_interval(values, clusters=ids, samples=4000)
    assert estimate.mean == 0.75
    assert (estimate.low, estimate.high, estimate.clusters) == (0.0, 1.0, 2)


def test_pairing_narrows_the_interval() -> None:
    generator = np.random.default_rng(0)
    hardness = generator.random(200)
    first, second = hardness < 0.6, hardness < 0.5
    paired = paired_difference(first, second)
    assert paired.mean == pytest.approx(first.mean() - second.mean())
    assert paired.low > 0
    alone = mean_interval(first)
    assert paired.high - paired.low < alone.high - alone.low


def test_equal_systems_have_no_difference() -> None:
    values = np.random.default_rng(0).random(30) < 0.5
    estimate = paired_difference(values, values)
    assert (estimate.mean, estimate.low, estimate.high) == (0, 0, 0)


def test_seeded_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50)
    whole = mean_interval(values, samples=1000, seed=7)
    assert mean_interval(values, samples=1000, seed=7) == whole
    assert mean_interval(values, samples=1000, seed=8) != whole
    monkeypatch.setattr(intervals, "_BLOCK", 500)
    assert mean_interval(values, samples=1000, seed=7) == whole


def test_wider_with_more_confidence() -> None:
    values = np.random.default_rng(0).normal(size=50)
    narrow, wide = mean_interval(values, confidence=0.8), mean_interval(values, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_refusals() -> None:
    with pytest.raises(InputError, match="at least one test question"):
        mean_interval([])
    with pytest.raises(InputError, match="at least one test question"):
        paired_difference([], [])
    with pytest.raises(InputError, match="3 values have 2 cluster ids"):
        mean_interval([1, 0, 1], clusters=["a", "b"])
    with pytest.raises(InputError, match="not 2 and 1"):
        paired_difference([1, 0], [1])


figures = st.lists(st.floats(-5, 5), min_size=1, max_size=30)
names = st.lists(st.sampled_from("abcdef"), min_size=30, max_size=30)


@given(values=figures, ids=names, shift=st.floats(-3, 3))
def test_an_interval_holds_its_mean_and_moves_with_the_values(
    values: list[float], ids: list[str], shift: float
) -> None:
    clusters = ids[: len(values)]
    found = mean_interval(values, clusters=clusters, samples=200)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    moved = mean_interval([value + shift for value in values], clusters=clusters, samples=200)
    assert moved.interval == pytest.approx([found.low + shift, found.high + shift], abs=1e-9)
    wider = mean_interval(values, clusters=clusters, samples=200, confidence=0.99)
    assert wider.low <= found.low + 1e-12 and found.high - 1e-12 <= wider.high


@given(values=figures, others=figures)
def test_a_difference_seen_from_the_other_side_is_mirrored(values: list[float], others: list[float]) -> None:
    n = min(len(values), len(others))
    found = paired_difference(values[:n], others[:n], samples=200)
    mirrored = paired_difference(others[:n], values[:n], samples=200)
    assert mirrored.interval == pytest.approx([-found.high, -found.low], abs=1e-9)
    assert paired_difference(values, values, samples=200).interval == [0.0, 0.0]
