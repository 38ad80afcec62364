"""Means with bootstrap intervals, clustered where questions depend on each other.

Percentile bootstrap: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.
Several phrasings of one fact, or questions on one document, are right or wrong together, so whole
clusters are drawn (Cameron, Gelbach and Miller, "Bootstrap-Based Improvements for Inference with
Clustered Errors", 2008). Two systems are compared by the per-question difference (paired): what
makes a question hard for both cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jora_tasks.errors import InputError

# Draws are made in blocks, so that memory does not grow with samples x clusters.
_BLOCK = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A mean over n questions in so many independent clusters, with its interval."""

    mean: float
    low: float
    high: float
    n: int
    clusters: int

    @property
    def interval(self) -> list[float]:
        return [self.low, self.high]


def mean_interval(
    values: ArrayLike,
    *,
    clusters: Sequence[str] | None = None,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Mean of per-question values and its percentile bootstrap interval.

    Args:
      values: float [n], one value a question.
      clusters: n ids; questions of one id are drawn together. None: each question is its own.
      samples: resamples drawn.
      confidence: coverage aimed at, as 0.95.
      seed: equal seeds and clusters draw equal resamples, whatever the values.

    Raises:
      InputError: without a question, or with ids of another number than values.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise InputError("A comparison needs at least one test question; add questions with split: test.")
    ids = np.arange(array.size) if clusters is None else np.asarray(clusters)
    if ids.shape != array.shape:
        raise InputError(f"{array.size} values have {ids.size} cluster ids; give one id for each value.")
    _, member = np.unique(ids, return_inverse=True)
    sums = np.bincount(member, weights=array).astype(np.float64)
    sizes = np.bincount(member).astype(np.float64)
    means = _resampled_means(sums, sizes, samples, seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(array.mean()), float(low), float(high), int(array.size), int(sums.size))


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    clusters: Sequence[str] | None = None,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Mean of ``first - second`` over the same questions, and its interval; as `mean_interval`.

    Raises:
      InputError: without a question, or if the two have not the same number of questions.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != other.shape:
        raise InputError(
            f"A paired comparison needs the same questions on both sides, not {one.size} and {other.size}."
        )
    return mean_interval(one - other, clusters=clusters, samples=samples, confidence=confidence, seed=seed)


def _resampled_means(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], samples: int, seed: int
) -> NDArray[np.float64]:
    """Mean over all questions of each resample of the clusters: float [samples]."""
    generator = np.random.default_rng(seed)
    count = sums.size
    block = max(1, _BLOCK // count)
    means = []
    for start in range(0, samples, block):
        drawn = generator.integers(0, count, size=(min(block, samples - start), count))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return np.concatenate(means)
