"""How well retrieval finds the evidence: measures of one question's ranking.

A question without any result has 0 in each. Relevance is yes or no: whether a chunk has the text of one
that overlaps a span of the evidence (`retrieval.evidence`), so that labels outlive another chunking and
a copied document is as right as the one it was copied from.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence


def recall_at(ranked: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Share of the relevant chunks that are among the first k; R@k of ir-measures.

    Args:
      ranked: the chunks' texts, best first; one that comes again counts where it came first.
      relevant: the texts that are relevant, at least one.
    """
    return len(set(ranked[:k]) & set(relevant)) / len(set(relevant))


def reciprocal_rank_at(ranked: Sequence[str], relevant: Collection[str], k: int) -> float:
    """1 / rank of the first relevant chunk, 0 if none is among the first k; RR@k of ir-measures.

    Its mean is the mean reciprocal rank (MRR). As `recall_at`.
    """
    return next((1 / rank for rank, each in enumerate(ranked[:k], start=1) if each in relevant), 0.0)


def ndcg_at(ranked: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Normalised discounted cumulative gain, in [0, 1]; nDCG@k of ir-measures.

    Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques" (2002), discounted by
    log2(rank + 1) and divided by that of the best ranking there could be. As `recall_at`.
    """
    once = {each: ranked.index(each) + 1 for each in ranked[:k] if each in relevant}
    gain = sum(1 / math.log2(rank + 1) for rank in once.values())
    best = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(set(relevant))) + 1))
    return gain / best


def measure(ranked: Sequence[str], relevant: Collection[str], top_k: int) -> dict[str, float]:
    """All measures of a ranking by name: ``recall@1``, and recall, rr and ndcg at ``top_k``."""
    return {
        "recall@1": recall_at(ranked, relevant, 1),
        f"recall@{top_k}": recall_at(ranked, relevant, top_k),
        f"rr@{top_k}": reciprocal_rank_at(ranked, relevant, top_k),
        f"ndcg@{top_k}": ndcg_at(ranked, relevant, top_k),
    }


def mean(values: Iterable[float]) -> float | None:
    """The mean, or None of nothing."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else None
