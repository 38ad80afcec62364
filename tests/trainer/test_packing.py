"""An example in a packed row: the same loss and gradient as alone, whatever is beside it."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from jora_tasks.spec import LoraConfig, TrainConfig
from jora_tasks.trainer import attention
from jora_tasks.trainer.batches import Batches, Update
from jora_tasks.trainer.config import parse_config
from jora_tasks.trainer.data import Dataset, Example
from jora_tasks.trainer.lora import init_lora
from jora_tasks.trainer.parameters import init_base
from jora_tasks.trainer.step import make_loss

CONFIG = parse_config(
    {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    }
)
LORA = LoraConfig(r=4)
LENGTHS = (128, 100, 90, 64, 37, 28, 20, 5)
ROW, BLOCK = 256, 128  # examples end within and at the edges of attention's blocks


@pytest.fixture(autouse=True, scope="module")
def several_blocks_a_row():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", BLOCK)
        yield


@pytest.fixture(scope="module")
def trees():
    base = init_base(CONFIG, jax.random.key(0))
    lora = init_lora(CONFIG, LORA, jax.random.key(1))
    for number, parts in enumerate(lora.values()):
        parts["b"] = 0.1 * jax.random.normal(jax.random.key(number), parts["b"].shape)
    return base, lora


def _dataset(seed=0):
    random = np.random.default_rng(seed)
    return Dataset(
        tuple(
            Example.make(str(i), random.integers(1, 96, n), scored=np.arange(n) % 3 == 2)
            for i, n in enumerate(LENGTHS)
        )
    )


@pytest.fixture(scope="module")
def packed():
    """Two rows, one of them full, as one update and its arrays."""
    batches = Batches(_dataset(), 2, 1, 0, packing=True, row_length=ROW)
    (update,) = batches.epoch(0)
    assert sorted(len(row) for row in update.rows) == [3, 5]
    return update, batches.arrays(update)


def _alone(index):
    batches = Batches(_dataset(), 1, 1, 0)
    return batches.arrays(Update(((index,),), batches.lengths[-1]))


@functools.cache
def _compiled():
    loss = make_loss(CONFIG, LORA, TrainConfig())
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def _loss_and_gradient(trees, batch):
    """Summed over the scored tokens of one micro-batch."""
    base, lora = trees
    micro = jax.tree.map(lambda array: array[0], batch)
    (loss, count), gradient = _compiled()(lora, base, micro, None)
    return float(loss), int(count), jax.device_get(gradient)


def _only(batch, row, segment):
    """The batch with one example's targets left."""
    own = np.take_along_axis(batch.segments, batch.positions, axis=-1) == segment
    own &= np.arange(own.shape[1])[:, None] == row
    return batch._replace(scored=batch.scored & own)


def _assert_close(found, expected):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_each_example_has_the_loss_and_gradient_it_has_alone(trees, packed):
    update, batch = packed
    for row, indices in enumerate(update.rows):
        for segment, index in enumerate(indices, 1):
            found = _loss_and_gradient(trees, _only(batch, row, segment))
            assert found[1] == len(range(2, LENGTHS[index], 3))
            _assert_close(found, _loss_and_gradient(trees, _alone(index)))


def test_a_packed_update_is_the_sum_of_its_examples(trees, packed):
    parts = [_loss_and_gradient(trees, _alone(index)) for index in range(len(LENGTHS))]
    whole = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *parts)
    _assert_close(_loss_and_gradient(trees, packed[1]), whole)


def test_no_example_sees_another(trees, packed):
    """Other tokens in one example change no bit of the losses beside it."""
    update, batch = packed
    row = max(range(2), key=lambda number: len(update.rows[number]))
    changed = (batch.segments == 2) & (np.arange(2)[:, None] == row)
    other = batch._replace(tokens=np.where(changed, (batch.tokens + 7) % 96, batch.tokens))
    for segment in range(1, len(update.rows[row]) + 1):
        before, after = (_loss_and_gradient(trees, _only(each, row, segment))[0] for each in (batch, other))
        assert (before == after) == (segment != 2)
