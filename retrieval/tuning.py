"""How broadly an approximate index must be searched for its recall to reach a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

K = 10  # of the recall that is measured
_CONFIDENCE = 1.645  # standard errors below the mean that the recall lies above in 95 of 100 samples


class Rows(Protocol):
    """Where the vectors come from: all of them need not be in memory."""

    def __len__(self) -> int: ...

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Vectors of these rows, float32 [len(rows), D], each of length 1."""
        ...


class ExactSearch:
    """Exact nearest rows of some queries, found block by block."""

    def __init__(self, queries: np.ndarray, k: int) -> None:
        self.queries, self._k = queries, k
        self.scores = np.empty((len(queries), 0), np.float32)
        self.rows = np.empty((len(queries), 0), np.int64)

    def add(self, block: np.ndarray, first: int) -> None:
        scores = np.concatenate([self.scores, self.queries @ block.T], axis=1)
        rows = np.broadcast_to(np.arange(first, first + len(block)), (len(self.queries), len(block)))
        rows = np.concatenate([self.rows, rows], axis=1)
        k = min(self._k, scores.shape[1])
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        self.scores = np.take_along_axis(scores, best, axis=1)
        self.rows = np.take_along_axis(rows, best, axis=1)


def tune(
    index: Any, rows: Rows, sample: np.ndarray, exact: ExactSearch, target: float
) -> tuple[dict[str, int], float, float]:
    """The narrowest search whose recall's bound reaches the target, else the broadest.

    Returns:
      Its breadth, its recall and the recall's bound.
    """
    import faiss

    ivf = faiss.try_extract_index_ivf(index)
    inner = faiss.downcast_index(index)
    holder: Any
    if ivf is not None:
        name, most, holder = "nprobe", ivf.nlist, ivf
    elif isinstance(inner, faiss.IndexHNSW):
        name, most, holder = "efSearch", 4096, inner.hnsw
    else:
        return {}, *_recall(index, rows, sample, exact)

    def at(breadth: int) -> tuple[float, float]:
        setattr(holder, name, breadth)
        return _recall(index, rows, sample, exact)

    high = 1 if ivf is not None else 16
    while high < most and at(high)[1] < target:
        high = min(2 * high, most)
    low = high // 2 + 1
    while low < high:  # recall does not fall as more is searched
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle)[1] >= target else (middle + 1, high)
    return {name: high}, *at(high)


def _recall(index: Any, rows: Rows, sample: np.ndarray, exact: ExactSearch) -> tuple[float, float]:
    """Mean share of the nearest `K` other rows that are found, and its one-sided lower bound.

    A row found counts if it is as near as the K-th of exact search: of equal vectors any will do.
    """
    _, found = index.search(exact.queries, K + 1)
    shares = []
    for query, row, got, true_rows, true_scores in zip(
        exact.queries, sample, found, exact.rows, exact.scores, strict=True
    ):
        others = np.sort(true_scores[true_rows != row])[::-1][:K]
        ids = [each for each in dict.fromkeys(got.tolist()) if each >= 0 and each != row][:K]
        near = np.sort(rows.take(ids) @ query)[::-1][: len(others)] if ids else np.empty(0)
        shares.append(np.count_nonzero(near >= others[-1] - 1e-6) / len(others))
    mean = float(np.mean(shares))
    return mean, max(0.0, mean - _CONFIDENCE * float(np.std(shares)) / math.sqrt(len(shares)))
