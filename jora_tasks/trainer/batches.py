"""Batches of few shapes, each example exactly once an epoch, in an order that can be resumed.

A row holds one example, or with packing as many whole ones as fit. Rows are padded to one of at most
`MAX_LENGTHS` lengths, so that a run compiles few programs. The updates of an epoch are a pure function
of the dataset, the settings, the seed and the epoch, so ``(epoch, index)`` is the whole state of the
iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from jora_tasks.trainer.data import Dataset
from jora_tasks.trainer.packing import most_scored, pack

LENGTH_MULTIPLE = 64
ANSWER_MULTIPLE = 8
MAX_LENGTHS = 4

Anywhere = Any  # np.ndarray on the host, jax.Array on devices


class Batch(NamedTuple):
    """Arrays of one update: A micro-batches of B rows, right-padded to S tokens and K scored entries.

    ``tokens`` int32 [A, B, S]; ``positions`` and ``targets`` int32 [A, B, K], the place in the row before
    each scored token and its id; ``scored`` bool [A, B, K], false where an entry pads, true ones first.
    Packed rows also have ``segments`` int32 [A, B, S], which numbers a row's examples from 1 and is 0 in
    padding, and ``position_ids`` int32 [A, B, S], which count from 0 in each example; other rows have
    None: under causal attention no token sees the padding after it, and padding is never scored.
    """

    tokens: Anywhere
    positions: Anywhere
    targets: Anywhere
    scored: Anywhere
    segments: Anywhere | None = None
    position_ids: Anywhere | None = None


Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Update:
    """One update's rows, each its examples by index into the dataset, and the length they are padded to."""

    rows: Rows
    length: int

    @property
    def indices(self) -> tuple[int, ...]:
        """The examples, row after row."""
        return tuple(index for row in self.rows for index in row)


@dataclass(frozen=True)
class Batches:
    """Updates over a dataset, epoch after epoch.

    Attributes:
      batch_size: rows in a micro-batch (B).
      accumulation: micro-batches in an update (A).
      seed: of the order of examples and updates.
      packing: put several examples into a row.
      row_length: tokens in a packed row, at least those of the longest example; 0 for these. It is
        rounded up like every padded length.
      multiple: what padded lengths are multiples of besides `LENGTH_MULTIPLE`, as a mesh may ask.
    """

    dataset: Dataset
    batch_size: int
    accumulation: int
    seed: int
    packing: bool = False
    row_length: int = 0
    multiple: int = 1

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """The padded lengths in use, ascending; one with packing."""
        multiple = int(np.lcm(LENGTH_MULTIPLE, self.multiple))
        if self.packing:
            return (round_up(self.row_length or int(self.dataset.lengths.max()), multiple),)
        return padded_lengths(self.dataset.lengths, multiple)

    @cached_property
    def per_epoch(self) -> int:
        """Updates in an epoch; the same in every epoch."""
        return len(self.epoch(0))

    @cached_property
    def padded_tokens(self) -> int:
        """Tokens that an epoch computes, padding included; the same in every epoch."""
        return sum(update.length for update in self.epoch(0)) * self._size

    @property
    def padding_share(self) -> float:
        """The part of the computed tokens that is padding."""
        return 1 - self.dataset.tokens / self.padded_tokens

    def epoch(self, epoch: int) -> tuple[Update, ...]:
        """The epoch's updates, in order; each example is in exactly one.

        Rows are shuffled and grouped by padded length. The few left over of one length are grouped with
        those of the next, so that only the last group of all may be short.
        """
        return self._epochs(epoch)

    @cached_property
    def _epochs(self) -> Callable[[int], tuple[Update, ...]]:
        return lru_cache(maxsize=2)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> tuple[Update, ...]:
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(len(self.dataset.lengths))
        updates: list[Update] = []
        waiting: list[tuple[int, ...]] = []
        for length, rows in zip(self.lengths, self._rows(order), strict=True):
            waiting += rows
            while len(waiting) >= self._size or (length == self.lengths[-1] and waiting):
                updates.append(Update(tuple(waiting[: self._size]), length))
                waiting = waiting[self._size :]
        return tuple(updates[index] for index in random.permutation(len(updates)))

    def _rows(self, order: np.ndarray) -> list[list[tuple[int, ...]]]:
        """The rows of each padded length, filled in this order of examples."""
        if self.packing:
            return [pack(self.dataset.lengths, order, self.lengths[0])]
        bucket = np.searchsorted(self.lengths, self.dataset.lengths[order])
        return [[(int(index),) for index in order[bucket == number]] for number in range(len(self.lengths))]

    def arrays(self, update: Update) -> Batch:
        """The update's arrays on the host; a short group is filled up with rows that score nothing."""
        entries = self._answer_widths[self.lengths.index(update.length)]
        rows, length = self._size, update.length
        batch = Batch(
            tokens=np.zeros((rows, length), np.int32),
            positions=np.zeros((rows, entries), np.int32),
            targets=np.zeros((rows, entries), np.int32),
            scored=np.zeros((rows, entries), bool),
            segments=np.zeros((rows, length), np.int32) if self.packing else None,
            position_ids=np.zeros((rows, length), np.int32) if self.packing else None,
        )
        for row, indices in enumerate(update.rows):
            self._fill(batch, row, indices)
        shape = (self.accumulation, self.batch_size, -1)
        return Batch(*(None if array is None else array.reshape(shape) for array in batch))

    def _fill(self, batch: Batch, row: int, indices: tuple[int, ...]) -> None:
        start = entry = 0
        for segment, index in enumerate(indices, 1):
            example = self.dataset.examples[index]
            stop = start + len(example.input_ids)
            batch.tokens[row, start:stop] = example.input_ids
            targets = np.flatnonzero(example.scored)
            entries = slice(entry, entry + len(targets))
            batch.positions[row, entries] = targets + (start - 1)
            batch.targets[row, entries] = example.input_ids[targets]
            batch.scored[row, entries] = True
            if batch.segments is not None and batch.position_ids is not None:
                batch.segments[row, start:stop] = segment
                batch.position_ids[row, start:stop] = np.arange(stop - start)
            start, entry = stop, entries.stop

    @property
    def _size(self) -> int:
        """Rows in an update."""
        return self.batch_size * self.accumulation

    @cached_property
    def _answer_widths(self) -> tuple[int, ...]:
        """K for each padded length: room for the scored tokens of any row that can be padded to it."""
        scored = self.dataset.scored_counts
        if self.packing:
            most = [most_scored(self.dataset.lengths, scored, self.lengths[0])]
        else:
            most = [int(scored[self.dataset.lengths <= length].max()) for length in self.lengths]
        return tuple(round_up(each, ANSWER_MULTIPLE) for each in most)


def padded_lengths(lengths: Sequence[int] | np.ndarray, multiple: int = LENGTH_MULTIPLE) -> tuple[int, ...]:
    """At most `MAX_LENGTHS` multiples that pad these lengths with least waste.

    Exact, by dynamic programming over the distinct rounded lengths.
    """
    rounded, counts = np.unique([round_up(length, multiple) for length in lengths], return_counts=True)
    seen = np.concatenate([[0], np.cumsum(counts)])
    # best[j]: least padded tokens for the j shortest distinct lengths, and the lengths chosen.
    none: tuple[int, tuple[int, ...]] = (0, ())
    best = [none] + [(1 << 62, ())] * len(rounded)
    for _ in range(min(MAX_LENGTHS, len(rounded))):
        longer = [none]
        for j, length in enumerate(map(int, rounded)):
            longer.append(
                min(
                    (best[i][0] + length * int(seen[j + 1] - seen[i]), (*best[i][1], length))
                    for i in range(j + 1)
                )
            )
        best = longer
    return best[-1][1]


def round_up(value: int, multiple: int) -> int:
    """(65, 64) → 128."""
    return -(-int(value) // multiple) * multiple
