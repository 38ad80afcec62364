"""Batches of few shapes, each example exactly once an epoch, in an order that can be resumed.

Sequences are padded to one of at most `MAX_LENGTHS` lengths, so that a run compiles few programs.
The updates of an epoch are a pure function of the dataset, the settings, the seed and the epoch, so
``(epoch, position)`` is the whole state of the iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from jora_tasks.trainer.data import Dataset, Example

LENGTH_MULTIPLE = 64
ANSWER_MULTIPLE = 8
MAX_LENGTHS = 4

Anywhere = Any  # np.ndarray on the host, jax.Array on devices


class Batch(NamedTuple):
    """Arrays of one update: A micro-batches of B rows, right-padded to S tokens and K scored entries.

    ``tokens`` int32 [A, B, S]; ``positions`` and ``targets`` int32 [A, B, K], the position before each
    scored token and its id; ``scored`` bool [A, B, K], false where an entry pads. Padding needs no mask
    of its own: under causal attention no token sees what follows it, and padding is never scored.
    """

    tokens: Anywhere
    positions: Anywhere
    targets: Anywhere
    scored: Anywhere


@dataclass(frozen=True)
class Update:
    """One update's examples, by index into the dataset, and the length they are padded to."""

    indices: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class Batches:
    """Updates over a dataset, epoch after epoch.

    Attributes:
      batch_size: rows in a micro-batch (B).
      accumulation: micro-batches in an update (A).
      seed: of the order of examples and updates.
    """

    dataset: Dataset
    batch_size: int
    accumulation: int
    seed: int

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """The padded lengths in use, ascending."""
        return padded_lengths([len(example.input_ids) for example in self.dataset.examples])

    @cached_property
    def per_epoch(self) -> int:
        """Updates in an epoch; the same in every epoch."""
        return -(-len(self.dataset.examples) // (self.batch_size * self.accumulation))

    @cached_property
    def padded_tokens(self) -> int:
        """Tokens that an epoch computes, padding included; the same in every epoch."""
        rows = self.batch_size * self.accumulation
        return sum(update.length * rows for update in self.epoch(0))

    def epoch(self, epoch: int) -> tuple[Update, ...]:
        """The epoch's updates, in order; each example is in exactly one.

        Examples are shuffled and grouped by padded length. The few left over of one length are
        grouped with those of the next, so that only the last group of all may be short.
        """
        random = np.random.default_rng((self.seed, epoch))
        size = self.batch_size * self.accumulation
        order = random.permutation(len(self.dataset.examples))
        bucket = np.searchsorted(self.lengths, [len(example.input_ids) for example in self.dataset.examples])
        updates: list[Update] = []
        waiting: list[int] = []
        for number, length in enumerate(self.lengths):
            waiting += [int(index) for index in order if bucket[index] == number]
            last = number == len(self.lengths) - 1
            while len(waiting) >= size or (last and waiting):
                updates.append(Update(tuple(waiting[:size]), length))
                waiting = waiting[size:]
        return tuple(updates[index] for index in random.permutation(len(updates)))

    def arrays(self, update: Update) -> Batch:
        """The update's arrays; a short group is filled up with rows that score nothing."""
        examples = [self.dataset.examples[index] for index in update.indices]
        rows = self.batch_size * self.accumulation
        entries = self._answer_widths[self.lengths.index(update.length)]
        batch = Batch(
            tokens=np.zeros((rows, update.length), np.int32),
            positions=np.zeros((rows, entries), np.int32),
            targets=np.zeros((rows, entries), np.int32),
            scored=np.zeros((rows, entries), bool),
        )
        for row, example in enumerate(examples):
            _fill(batch, row, example)
        return Batch(*(array.reshape(self.accumulation, self.batch_size, -1) for array in batch))

    @cached_property
    def _answer_widths(self) -> tuple[int, ...]:
        """K for each padded length: room for the longest answer that can be padded to it."""
        return tuple(
            _round_up(
                max(
                    int(example.scored.sum())
                    for example in self.dataset.examples
                    if len(example.input_ids) <= length
                ),
                ANSWER_MULTIPLE,
            )
            for length in self.lengths
        )


def padded_lengths(lengths: Sequence[int]) -> tuple[int, ...]:
    """At most `MAX_LENGTHS` multiples of `LENGTH_MULTIPLE` that pad these lengths with least waste.

    Exact, by dynamic programming over the distinct rounded lengths.
    """
    rounded, counts = np.unique(
        [_round_up(length, LENGTH_MULTIPLE) for length in lengths], return_counts=True
    )
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


def _fill(batch: Batch, row: int, example: Example) -> None:
    batch.tokens[row, : len(example.input_ids)] = example.input_ids
    targets = np.flatnonzero(example.scored)
    batch.positions[row, : len(targets)] = targets - 1
    batch.targets[row, : len(targets)] = example.input_ids[targets]
    batch.scored[row, : len(targets)] = True


def _round_up(value: int, multiple: int) -> int:
    return -(-int(value) // multiple) * multiple
