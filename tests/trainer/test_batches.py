"""Bucketing: every example once an epoch, few shapes, and arrays that say what the examples say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jora_tasks.trainer.batches import LENGTH_MULTIPLE, MAX_LENGTHS, Batches, padded_lengths
from jora_tasks.trainer.data import Dataset, Example


def _dataset(lengths, seed=0):
    random = np.random.default_rng(seed)
    return Dataset(
        tuple(
            Example.make(
                str(number),
                random.integers(1, 1000, length),
                prompt_length=int(random.integers(max(1, length - 20), length)),
            )
            for number, length in enumerate(lengths)
        )
    )


lengths_lists = st.lists(st.integers(2, 700), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(lengths_lists, st.integers(1, 5), st.integers(1, 3), st.integers(0, 5), st.integers(0, 3))
def test_every_example_is_in_one_update_of_an_epoch(lengths, batch_size, accumulation, seed, epoch):
    batches = Batches(_dataset(lengths), batch_size, accumulation, seed)
    updates = batches.epoch(epoch)
    assert sorted(itertools.chain(*(update.indices for update in updates))) == list(range(len(lengths)))
    assert len(updates) == batches.per_epoch
    assert sum(len(update.indices) < batch_size * accumulation for update in updates) <= 1
    assert all(update.length >= max(lengths[index] for index in update.indices) for update in updates)
    assert sum(update.length for update in updates) * batch_size * accumulation == batches.padded_tokens


@settings(max_examples=20, deadline=None)
@given(lengths_lists, st.integers(1, 4), st.integers(1, 3))
def test_arrays_hold_the_examples_and_nothing_else(lengths, batch_size, accumulation):
    dataset = _dataset(lengths)
    batches = Batches(dataset, batch_size, accumulation, 0)
    for update in batches.epoch(0):
        batch = batches.arrays(update)
        assert batch.tokens.shape == (accumulation, batch_size, update.length)
        rows = [array.reshape(batch_size * accumulation, -1) for array in batch]
        for row, index in enumerate(update.indices):
            example = dataset.examples[index]
            tokens, positions, targets, scored = (array[row] for array in rows)
            np.testing.assert_array_equal(tokens[: len(example.input_ids)], example.input_ids)
            assert not tokens[len(example.input_ids) :].any()
            learned = np.flatnonzero(example.scored)
            np.testing.assert_array_equal(positions[scored] + 1, learned)
            np.testing.assert_array_equal(targets[scored], example.input_ids[learned])
        assert batch.scored.sum() == sum(dataset.examples[i].scored.sum() for i in update.indices)


@settings(max_examples=60, deadline=None)
@given(lengths_lists)
def test_padded_lengths_are_few_and_the_best_choice(lengths):
    chosen = padded_lengths(lengths)
    assert len(chosen) <= MAX_LENGTHS
    assert list(chosen) == sorted(set(chosen))
    assert all(length % LENGTH_MULTIPLE == 0 for length in chosen)
    assert chosen[-1] >= max(lengths)

    def waste(edges):
        return sum(min(edge for edge in edges if edge >= length) for length in lengths)

    candidates = sorted({-(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE for length in lengths})
    fewer = candidates[:-1]
    best = min(
        waste((*some, candidates[-1]))
        for size in range(min(MAX_LENGTHS, len(candidates)))
        for some in itertools.combinations(fewer, size)
    )
    assert waste(chosen) == best


def test_the_order_is_a_function_of_seed_and_epoch():
    dataset = _dataset([30, 90, 150, 40] * 10)
    first = Batches(dataset, 4, 1, seed=1)
    assert first.epoch(2) == Batches(dataset, 4, 1, seed=1).epoch(2)
    assert first.epoch(0) != first.epoch(1)
    assert first.epoch(0) != Batches(dataset, 4, 1, seed=2).epoch(0)


def test_shapes_are_as_few_as_lengths():
    dataset = _dataset(list(range(10, 640, 7)))
    batches = Batches(dataset, 4, 2, seed=0)
    shapes = {
        tuple(array.shape for array in batches.arrays(update))
        for epoch in range(3)
        for update in batches.epoch(epoch)
    }
    assert len(shapes) == len(batches.lengths) == MAX_LENGTHS


@pytest.mark.parametrize("accumulation", [1, 2])
def test_rows_that_fill_up_score_nothing(accumulation):
    batches = Batches(_dataset([10, 20, 30]), 4, accumulation, seed=0)
    (update,) = batches.epoch(0)
    batch = batches.arrays(update)
    assert batch.scored.reshape(4 * accumulation, -1)[:3].any(axis=1).all()
    assert not batch.scored.reshape(4 * accumulation, -1)[3:].any()
