"""The updates of a run, prepared ahead of the training loop.

A thread of Grain's makes the next updates' arrays and puts them on the devices while the current one
is computed. What an update holds is a function of its number alone (`Batches.epoch`), so a `Position` is
all there is to resume from.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

from jax.sharding import Mesh

from jora_tasks.trainer.batches import Batch, Batches, Update
from jora_tasks.trainer.checkpoint import Position
from jora_tasks.trainer.step import place_batch

AHEAD = 2  # updates ready on the devices besides the one in progress


class Prepared(NamedTuple):
    """An update with its arrays on the devices, its epoch (from 0), and the run's position after it."""

    update: Update
    batch: Batch
    epoch: int
    after: Position


def updates(
    batches: Batches, position: Position, epochs: int, mesh: Mesh | None
) -> Generator[Prepared, None, None]:
    """The updates from a position on to the end of the last epoch, in order.

    Close the iterator (or let it be collected) to end its thread before its end.
    """
    import grain

    def prepare(number: int) -> Prepared:
        epoch, index = divmod(number, batches.per_epoch)
        update = batches.epoch(epoch)[index]
        after = Position(number + 1, *divmod(number + 1, batches.per_epoch))
        return Prepared(update, place_batch(batches.arrays(update), mesh), epoch, after)

    numbers = grain.MapDataset.range(position.step, epochs * batches.per_epoch)
    # One thread that works ahead: Grain's pool of reading threads costs the loop three times as much.
    here = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    ahead = grain.experimental.ThreadPrefetchIterDataset(
        numbers.map(prepare).to_iter_dataset(here), prefetch_buffer_size=AHEAD
    )
    iterator = iter(ahead)
    try:
        yield from iterator
    finally:
        iterator.close()
