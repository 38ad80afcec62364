"""Updates prepared ahead: the same ones in the same order, from any position, and no thread left."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from jora_tasks.trainer.batches import Batches
from jora_tasks.trainer.checkpoint import Position
from jora_tasks.trainer.data import Dataset, Example
from jora_tasks.trainer.pipeline import updates

EPOCHS = 3


@pytest.fixture(scope="module", params=[False, True], ids=["one a row", "packed"])
def batches(request):
    random = np.random.default_rng(0)
    examples = [
        Example.make(str(i), random.integers(1, 96, n), prompt_length=2)
        for i, n in enumerate(random.integers(5, 100, 21))
    ]
    return Batches(Dataset(tuple(examples)), 2, 2, seed=3, packing=request.param)


def test_every_update_comes_in_order_with_its_arrays(batches):
    found = list(updates(batches, Position(0, 0, 0), EPOCHS, None))
    assert [each.update for each in found] == [u for epoch in range(EPOCHS) for u in batches.epoch(epoch)]
    assert [each.epoch for each in found] == [e for e in range(EPOCHS) for _ in range(batches.per_epoch)]
    for each in found:
        for placed, array in zip(each.batch, batches.arrays(each.update), strict=True):
            assert (placed is None) == (array is None)
            np.testing.assert_array_equal(placed, array)
    assert found[-1].after == Position(len(found), EPOCHS, 0)


def test_a_run_goes_on_from_any_position(batches):
    whole = list(updates(batches, Position(0, 0, 0), EPOCHS, None))
    for done in (1, batches.per_epoch, 2 * batches.per_epoch + 1, len(whole)):
        rest = list(updates(batches, whole[done - 1].after, EPOCHS, None))
        assert [each[::2] for each in rest] == [each[::2] for each in whole[done:]]
        assert [each.after for each in rest] == [each.after for each in whole[done:]]


def test_an_iterator_left_early_ends_its_thread(batches):
    before = threading.active_count()
    iterator = updates(batches, Position(0, 0, 0), EPOCHS, None)
    next(iterator)
    assert threading.active_count() == before + 1
    iterator.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
