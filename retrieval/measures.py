"""How well retrieval finds the evidence."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def recall_at(ranked: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Share of the relevant chunks that are among the first k; R@k of ir-measures.

    Args:
      ranked: chunk ids, best first.
      relevant: chunk ids, at least one.
    """
    return len(set(ranked[:k]) & set(relevant)) / len(set(relevant))


def mean(values: Iterable[float]) -> float | None:
    """The mean, or None of nothing."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else None
