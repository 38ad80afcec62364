"""Several rankings into one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)

RANK_CONSTANT = 60


def fuse(
    rankings: Sequence[Sequence[Item]], weights: Sequence[float], constant: int = RANK_CONSTANT
) -> list[tuple[Item, float]]:
    """Weighted reciprocal rank fusion: an item's score is the sum of weight / (constant + rank).

    Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion Outperforms Condorcet and Individual Rank
    Learning Methods" (SIGIR 2009), with a weight for each ranking; they found 60 a good constant.

    Args:
      rankings: items, best first, each at most once; ranks count from 1.
      weights: one a ranking, none negative; a ranking of weight 0 has no say and adds no item.

    Returns:
      Items and scores, best first; of equal scores the one that the earlier ranking has further up.
    """
    if len(rankings) != len(weights) or min(weights, default=0) < 0:
        raise ValueError(f"weights {weights} for {len(rankings)} rankings")
    scores: dict[Item, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        if weight:
            for rank, item in enumerate(ranking, start=1):
                scores[item] = scores.get(item, 0.0) + weight / (constant + rank)
    return sorted(scores.items(), key=lambda pair: -pair[1])
