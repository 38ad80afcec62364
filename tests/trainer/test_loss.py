"""answer_loss against float64 numpy, and its gradient against autodiff of the plain formula."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_tasks.trainer import loss as loss_module
from jora_tasks.trainer.loss import answer_loss

BATCH, LENGTH, WIDTH, VOCABULARY, ENTRIES = 3, 20, 16, 50, 11


def _case(seed=0, dtype=np.float32):
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(BATCH, LENGTH, WIDTH)).astype(dtype)
    head = random.normal(size=(VOCABULARY, WIDTH)).astype(dtype)
    positions = np.stack([random.permutation(LENGTH)[:ENTRIES] for _ in range(BATCH)]).astype(np.int32)
    targets = random.integers(0, VOCABULARY, (BATCH, ENTRIES)).astype(np.int32)
    scored = np.arange(ENTRIES) < np.array([[11], [4], [0]])
    return hidden, head, positions, targets, scored


def _float64(hidden, head, positions, targets, scored):
    total = 0.0
    for b in range(BATCH):
        for k in range(ENTRIES):
            if scored[b, k]:
                logits = head.astype(np.float64) @ hidden[b, positions[b, k]].astype(np.float64)
                top = logits.max()
                total += top + np.log(np.exp(logits - top).sum()) - logits[targets[b, k]]
    return total


def _plain(hidden, head, positions, targets, scored, softcap=None):
    logits = jnp.einsum("bsd,vd->bsv", hidden, head)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    logits = jnp.take_along_axis(logits, positions[:, :, None], axis=1)
    return -jnp.sum(
        jnp.where(
            scored, jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, :, None], axis=2)[..., 0], 0
        )
    )


@pytest.fixture(params=["one chunk", "chunks of 1", "chunks of 4"])
def chunking(request, monkeypatch):
    rows = {"one chunk": 1000, "chunks of 1": 1, "chunks of 4": 4}[request.param]
    monkeypatch.setattr(loss_module, "MAX_CHUNK_LOGITS", rows * BATCH * VOCABULARY)


def test_loss_is_that_of_float64(chunking):
    case = _case()
    total, count = answer_loss(*case)
    assert count == 15
    assert total == pytest.approx(_float64(*case), rel=1e-6)


@pytest.mark.parametrize("softcap", [None, 5.0], ids=["plain", "capped"])
def test_loss_and_gradient_are_those_of_the_plain_formula(chunking, softcap):
    hidden, *rest = _case(1)
    value, ours = jax.value_and_grad(lambda x: 2.5 * answer_loss(x, *rest, softcap)[0])(hidden)
    expected, plain = jax.value_and_grad(lambda x: 2.5 * _plain(x, *rest, softcap))(hidden)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)
    assert not np.any(ours[2])  # the row that scores nothing


def test_a_trained_head_gets_the_gradient_of_the_plain_formula(chunking):
    hidden, head, *rest = _case(1)
    ours = jax.grad(lambda x, w: 2.5 * answer_loss(x, w, *rest, head_is_trained=True)[0], argnums=(0, 1))(
        hidden, head
    )
    plain = jax.grad(lambda x, w: 2.5 * _plain(x, w, *rest), argnums=(0, 1))(hidden, head)
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)
    frozen = jax.grad(lambda w: answer_loss(hidden, w, *rest)[0])(head)
    assert not np.any(frozen)


def test_gradient_over_a_bf16_head_is_close(chunking):
    hidden, *rest = _case(2, jnp.bfloat16)
    ours = jax.grad(lambda x: answer_loss(x, *rest)[0])(hidden)
    plain = jax.grad(lambda x: _plain(x, rest[0].astype(np.float32), *rest[1:]))(hidden.astype(np.float32))
    assert ours.dtype == jnp.bfloat16
    difference = np.linalg.norm(ours.astype(np.float32) - plain) / np.linalg.norm(plain)
    assert difference < 0.01


def test_large_logits_do_not_overflow():
    hidden, head, *rest = _case(3)
    case = (hidden * 1000, head, *rest)
    total, _ = answer_loss(*case)
    assert total == pytest.approx(_float64(*case), rel=1e-5)


def test_values_of_padding_entries_do_not_matter():
    hidden, head, positions, targets, scored = _case(4)
    other = np.where(scored, targets, (targets + 7) % VOCABULARY)
    elsewhere = np.where(scored, positions, 0)
    total, _ = answer_loss(hidden, head, positions, targets, scored)
    assert answer_loss(hidden, head, elsewhere, other, scored)[0] == total


def test_no_array_as_large_as_all_logits(monkeypatch):
    monkeypatch.setattr(loss_module, "MAX_CHUNK_LOGITS", 2 * BATCH * VOCABULARY)
    hidden, *rest = _case()
    text = jax.jit(jax.grad(lambda x: answer_loss(x, *rest)[0])).lower(hidden).as_text()
    assert f"{BATCH}x2x{VOCABULARY}xf32" in text
    assert f"{BATCH}x{ENTRIES}x{VOCABULARY}xf32" not in text
    assert f"{BATCH}x{LENGTH}x{VOCABULARY}xf32" not in text
