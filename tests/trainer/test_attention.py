from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_tasks.trainer.attention import attention, reference_attention


def draw(length, heads=4, kv_heads=2, batch=2, size=8, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(length + heads), 3)
    shapes = [(batch, length, count, size) for count in (heads, kv_heads, kv_heads)]
    return tuple(jax.random.normal(key, shape, dtype) * 2 for key, shape in zip(keys, shapes, strict=True))


def brute_force(q, k, v, segments, window=None, softcap=None, scale=None):
    """Token by token, head by head, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for row, position, head in np.ndindex(q.shape[:3]):
        nearest = range(max(0, position + 1 - (window or 10**9)), position + 1)
        seen = [t for t in nearest if segments[row][t] == segments[row][position]]
        scores = np.array([q[row, position, head] @ k[row, t, head // group] for t in seen])
        scores = scores * (scale or q.shape[3] ** -0.5)
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.exp(scores - scores.max())
        out[row, position, head] = (weights / weights.sum()) @ v[row, seen, head // group]
    return out


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (4, 1)])
def test_reference_is_attention(heads, kv_heads):
    q, k, v = draw(11, heads, kv_heads)
    segments = np.array([[1] * 4 + [2] * 5 + [0] * 2, [1] * 11])
    found = reference_attention(q, k, v, jnp.asarray(segments))
    np.testing.assert_allclose(found, brute_force(q, k, v, segments), atol=2e-6)
    np.testing.assert_allclose(
        reference_attention(q, k, v), brute_force(q, k, v, np.ones((2, 11))), atol=2e-6
    )


@pytest.mark.parametrize("options", [{"window": 3}, {"softcap": 2.0}, {"scale": 0.7, "window": 20}], ids=str)
def test_reference_has_windows_caps_and_scales(options):
    q, k, v = draw(11)
    found = reference_attention(q, k, v, **options)
    np.testing.assert_allclose(found, brute_force(q, k, v, np.ones((2, 11)), **options), atol=2e-6)


OPTIONS = [{}, {"window": 1}, {"window": 50, "softcap": 3.0}, {"window": 200, "scale": 0.3}, {"softcap": 5.0}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("length", [1, 128, 300])
@pytest.mark.parametrize("segmented", [False, True])
def test_blockwise_equals_reference_with_gradients(length, segmented, options):
    q, k, v = draw(length)
    segments = (
        jnp.asarray(np.sort(np.arange(2 * length).reshape(2, length) % 3, axis=1)) if segmented else None
    )

    def total(attend):
        return lambda q, k, v: (attend(q, k, v, segments, **options) * jnp.cos(jnp.arange(8.0))).sum()

    np.testing.assert_allclose(
        attention(q, k, v, segments, **options), reference_attention(q, k, v, segments, **options), atol=1e-5
    )
    found = jax.jit(jax.grad(total(attention), argnums=(0, 1, 2)))(q, k, v)
    expected = jax.jit(jax.grad(total(reference_attention), argnums=(0, 1, 2)))(q, k, v)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * (1 + float(jnp.abs(other).max())))


def test_bf16_inputs_keep_f32_scores():
    exact = draw(200)
    rounded = tuple(x.astype(jnp.bfloat16) for x in exact)
    found = attention(*rounded)
    assert found.dtype == jnp.bfloat16
    expected = reference_attention(*(x.astype(jnp.float32) for x in rounded))
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.03)


def test_scores_past_a_block_are_never_formed():
    q, k, v = draw(2048, heads=2, kv_heads=1, batch=1)

    def peak(attend):
        grad = jax.jit(jax.grad(lambda q, k, v: attend(q, k, v).sum(), argnums=(0, 1, 2)))
        return grad.lower(q, k, v).compile().memory_analysis().temp_size_in_bytes

    assert peak(attention) < 0.6 * peak(reference_attention)
