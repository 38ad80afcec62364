"""What a retrieval score is worth: of chunks that scored about so, how many held the evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_NORMAL_975 = 1.959964


def score_bins(scored: Sequence[tuple[float, bool]], bins: int = 8) -> list[dict[str, Any]]:
    """Bins of about as many scores each, lowest first; equal scores share one.

    Args:
      scored: score of each chunk, and whether it is relevant.

    Returns:
      Each with ``low`` and ``high`` (its least and greatest score), ``n``, the share ``relevant`` and its
      95 % ``interval`` (Wilson, 1927).
    """
    if not scored:
        return []
    values, hits = np.asarray(scored, dtype=np.float64).T
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    member = np.searchsorted(edges, values, side="left")
    found = []
    for number in np.unique(member):
        inside = member == number
        share, n = float(hits[inside].mean()), int(inside.sum())
        low, high = float(values[inside].min()), float(values[inside].max())
        found.append({"low": low, "high": high, "n": n, "relevant": share, "interval": wilson(share, n)})
    return found


def wilson(share: float, n: int) -> list[float]:
    """The 95 % score interval of a share of n."""
    z = _NORMAL_975
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return [max(0.0, middle - half), min(1.0, middle + half)]
