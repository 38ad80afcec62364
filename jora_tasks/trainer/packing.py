"""Which examples share a row.

Best-fit decreasing: the longest first, each into the fullest row that still has room for it, which takes at
most 11/9 of the fewest rows possible and 4 more (Johnson et al. 1974, SIAM Journal on Computing 3).
Examples are never cut.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
from jaxtyping import Int


def pack(
    tokens: Int[np.ndarray, " examples"], order: Int[np.ndarray, " examples"], length: int
) -> list[tuple[int, ...]]:
    """Rows of at most ``length`` tokens in which each example is once.

    How many rows there are does not depend on ``order``: examples of the same length are interchangeable.

    Args:
      tokens: of each example, at most ``length``.
      order: a permutation of the examples, which decides among those of the same length.

    Returns:
      Each row's examples by index, in random order of rows if ``order`` is random: a row's place is that
      of its first example in ``order``.
    """
    rows: list[list[int]] = []
    spaces: list[int] = []  # the distinct amounts of room left in rows, ascending
    with_space: dict[int, list[int]] = {}  # the rows that have each
    for index in order[np.argsort(-tokens[order], kind="stable")]:
        size = int(tokens[index])
        place = bisect_left(spaces, size)
        if place == len(spaces):
            space, row = length, len(rows)
            rows.append([])
        else:
            space = spaces[place]
            row = with_space[space].pop()
            if not with_space[space]:
                del spaces[place], with_space[space]
        rows[row].append(int(index))
        if space - size not in with_space:
            insort(spaces, space - size)
        with_space.setdefault(space - size, []).append(row)
    place_of = np.argsort(order)
    return [tuple(row) for row in sorted(rows, key=lambda row: place_of[row[0]])]


def most_scored(
    tokens: Int[np.ndarray, " examples"], scored: Int[np.ndarray, " examples"], length: int
) -> int:
    """A bound on the scored tokens of any row of these examples: the most that fit if the last may be cut.

    Whatever the rows of an epoch, their answers fit, so all epochs run the same program.
    """
    share = scored / tokens
    densest = np.argsort(-share, kind="stable")
    filled = np.minimum(np.cumsum(tokens[densest]), length)
    taken = np.diff(filled, prepend=0)
    return min(length, int(np.ceil((taken * share[densest]).sum() - 1e-6)))
