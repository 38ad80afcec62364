"""Texts that say the same again: a place in a prompt is better given to another."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from retrieval.words import words

_WIDTH = 5

Shingles = frozenset[Hashable]


def shingles(text: str) -> Shingles:
    """The text's runs of five words; all its words where it has fewer, itself where it has none."""
    found = words(text)
    if len(found) <= _WIDTH:
        return frozenset([tuple(found) or text])
    return frozenset(zip(*(found[start:] for start in range(_WIDTH)), strict=False))


def similarity(one: Shingles, other: Shingles) -> float:
    """Share of the shingles of either that both have: Jaccard's (Broder, "On the Resemblance and
    Containment of Documents", 1997); here counted, not estimated by MinHash, since a ranking is short."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def distinct(texts: Iterable[str], most: float, limit: int) -> tuple[list[int], int]:
    """Go through texts, best first, and leave out each that is too similar to one kept before it.

    Args:
      most: texts of this similarity or more count as the same; 0 keeps all.
      limit: texts to keep; the rest is not looked at.

    Returns:
      The positions kept, and how many were left out before the last of them was found.
    """
    kept: list[int] = []
    seen: list[Shingles] = []
    left_out = 0
    for position, text in enumerate(texts):
        if len(kept) == limit:
            break
        if most:
            these = shingles(text)
            if any(_similar(these, others, most) for others in seen):
                left_out += 1
                continue
            seen.append(these)
        kept.append(position)
    return kept, left_out


def _similar(one: Shingles, other: Shingles, most: float) -> bool:
    small, large = sorted((len(one), len(other)))
    return small >= most * large and similarity(one, other) >= most
