"""A randomisation test of a paired difference, by cluster.

If two systems were equal, each cluster's difference could as well have the other sign. The p-value is
the share of all assignments of signs to clusters whose mean difference is at least as far from 0 as the
one found (Fisher's randomisation test; Noreen, "Computer-Intensive Methods for Testing Hypotheses", 1989;
Smucker, Allan and Carterette, CIKM 2007). Few clusters are enumerated; of many, assignments are drawn, and
the one found is counted among them, so that a p-value is never 0 (Phipson and Smyth, 2010).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK = 4_000_000
# Sums of the same numbers in another order differ by rounding.
_TIE = 1e-9


def sign_flip_p_value(
    differences: ArrayLike, *, clusters: Sequence[str] | None = None, samples: int = 2000, seed: int = 0
) -> float:
    """Two-sided p-value of "the mean difference is 0".

    Args:
      differences: float [n], one a question.
      clusters: n ids; the questions of one id keep a common sign. None: each question is its own.
      samples: assignments drawn, where there are more than this many.
      seed: of the drawing.
    """
    values = np.asarray(differences, dtype=np.float64)
    ids = np.arange(values.size) if clusters is None else np.asarray(clusters)
    _, member = np.unique(ids, return_inverse=True)
    sums = np.bincount(member, weights=values).astype(np.float64)
    sums = sums[sums != 0]  # the sign of 0 changes nothing
    found = abs(sums.sum()) - _TIE * np.abs(sums).sum()
    if sums.size < 63 and 2**sums.size <= samples:
        return float(np.mean(np.abs(_all_signs(sums.size) @ sums) >= found))
    generator = np.random.default_rng(seed)
    block, as_far = max(1, _BLOCK // sums.size), 1
    for start in range(0, samples, block):
        signs = generator.integers(0, 2, size=(min(block, samples - start), sums.size), dtype=np.int8) * 2 - 1
        as_far += int(np.sum(np.abs(signs @ sums) >= found))
    return as_far / (samples + 1)


def _all_signs(count: int) -> NDArray[np.int8]:
    """Every assignment of signs: [2 ** count, count]."""
    bits = np.arange(2**count)[:, None] >> np.arange(count)[None]
    return ((bits & 1) * 2 - 1).astype(np.int8)
