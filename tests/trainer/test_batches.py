"""Bucketing: every example once an epoch, few shapes, and arrays that say what the examples say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jora_tasks.trainer.batches import LENGTH_MULTIPLE, MAX_LENGTHS, Batches, padded_lengths
from jora_tasks.trainer.data import Dataset, Example
from jora_tasks.trainer.packing import pack


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
@given(lengths_lists, st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.booleans())
def test_every_example_is_in_one_update_of_an_epoch(lengths, batch_size, accumulation, epoch, packing):
    batches = Batches(_dataset(lengths), batch_size, accumulation, 1, packing)
    updates = batches.epoch(epoch)
    assert sorted(itertools.chain(*(update.indices for update in updates))) == list(range(len(lengths)))
    assert len(updates) == batches.per_epoch
    assert sum(len(update.rows) < batch_size * accumulation for update in updates) <= 1
    rows = [
        (sum(lengths[index] for index in row), update.length) for update in updates for row in update.rows
    ]
    assert all(0 < tokens <= length for tokens, length in rows)
    assert sum(update.length for update in updates) * batch_size * accumulation == batches.padded_tokens


@settings(max_examples=30, deadline=None)
@given(lengths_lists, st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_arrays_hold_the_examples_and_nothing_else(lengths, batch_size, accumulation, packing):
    dataset = _dataset(lengths)
    batches = Batches(dataset, batch_size, accumulation, 0, packing)
    for update in batches.epoch(0):
        batch = batches.arrays(update)
        assert batch.tokens.shape == (accumulation, batch_size, update.length)
        rows = [array.reshape(batch_size * accumulation, -1) for array in batch if array is not None]
        for row, indices in enumerate(update.rows):
            examples = [dataset.examples[index] for index in indices]
            tokens, positions, targets, scored, *numbers = (array[row] for array in rows)
            ids = np.concatenate([example.input_ids for example in examples])
            np.testing.assert_array_equal(tokens[: len(ids)], ids)
            assert not tokens[len(ids) :].any()
            learned = np.flatnonzero(np.concatenate([example.scored for example in examples]))
            np.testing.assert_array_equal(positions[scored] + 1, learned)
            np.testing.assert_array_equal(targets[scored], ids[learned])
            assert scored[: len(learned)].all()  # true ones first
            if packing:
                segments, places = numbers
                sizes = [len(example.input_ids) for example in examples]
                expected = np.repeat(np.arange(1, len(sizes) + 1), sizes)
                np.testing.assert_array_equal(np.trim_zeros(segments, "b"), expected)
                expected = np.concatenate([np.arange(size) for size in sizes])
                np.testing.assert_array_equal(places[: len(ids)], expected)
            else:
                assert len(examples) == 1 and batch.segments is batch.position_ids is None
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


@pytest.mark.parametrize("packing", [False, True])
def test_the_order_is_a_function_of_seed_and_epoch(packing):
    dataset = _dataset([30, 90, 150, 40] * 10)
    first = Batches(dataset, 4, 1, seed=1, packing=packing)
    assert first.epoch(2) == Batches(dataset, 4, 1, seed=1, packing=packing).epoch(2)
    assert first.epoch(0) != first.epoch(1)
    assert first.epoch(0) != Batches(dataset, 4, 1, seed=2, packing=packing).epoch(0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=9))
def test_packing_takes_few_rows(lengths):
    rows = pack(np.array(lengths), np.arange(len(lengths)), 50)
    assert len(rows) <= 11 / 9 * _fewest_rows(tuple(sorted(lengths)), 50) + 4
    # No two rows could be one: best fit would have joined them.
    filled = sorted(sum(lengths[index] for index in row) for row in rows)
    assert len(filled) < 2 or filled[0] + filled[1] > 50


def _fewest_rows(lengths, length):
    """Brute force: every way to put the longest with others."""
    if not lengths:
        return 0
    *others, longest = lengths
    return 1 + min(
        _fewest_rows(tuple(others[i] for i in range(len(others)) if i not in chosen), length)
        for size in range(len(others) + 1)
        for chosen in itertools.combinations(range(len(others)), size)
        if longest + sum(others[i] for i in chosen) <= length
    )


def test_rows_are_filled_to_the_length_asked_for_and_a_mesh_can_split_them():
    dataset = _dataset([60, 50, 40, 30, 20, 10] * 10)
    batches = Batches(dataset, 4, 1, 0, packing=True, row_length=200, multiple=6)
    assert batches.lengths == (384,)  # a multiple of 64 and 6
    assert Batches(dataset, 4, 1, 0, packing=True).lengths == (64,)
    assert Batches(dataset, 4, 1, 0, multiple=6).lengths == (192,)
    assert batches.padding_share == pytest.approx(1 - 2100 / batches.padded_tokens)
    assert batches.padding_share < 0.32 < Batches(dataset, 4, 1, 0).padding_share


def test_shapes_are_as_few_as_lengths():
    dataset = _dataset(list(range(10, 640, 7)))
    batches = Batches(dataset, 4, 2, seed=0)
    shapes = {batches.arrays(update).tokens.shape for epoch in range(3) for update in batches.epoch(epoch)}
    assert len(shapes) == len(batches.lengths) == MAX_LENGTHS


@pytest.mark.parametrize("accumulation", [1, 2])
def test_rows_that_fill_up_score_nothing(accumulation):
    batches = Batches(_dataset([10, 20, 30]), 4, accumulation, seed=0)
    (update,) = batches.epoch(0)
    batch = batches.arrays(update)
    assert batch.scored.reshape(4 * accumulation, -1)[:3].any(axis=1).all()
    assert not batch.scored.reshape(4 * accumulation, -1)[3:].any()
