"""Causal attention with grouped key and value heads.

Query head h reads key and value head ``h // (heads / kv_heads)``: the order of transformers' Llama.
Scores and softmax are f32 whatever the inputs' type. Keys and values are never repeated in memory.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30  # finite, so that a row without any allowed key gives no NaN
OUTPUT = "attention_output"  # names under which a remat policy may keep what the backward pass reads
INPUTS = "attention_inputs"

Queries = Float[Array, "B S H d"]
Keys = Float[Array, "B S K d"]
Segments = Int[Array, "B S"]


def reference_attention(
    q: Queries,
    k: Keys,
    v: Keys,
    segments: Segments | None = None,
    *,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> Queries:
    """Each token attends to itself and the earlier tokens of its segment, all scores at once.

    Args:
      q, k, v: queries, keys and values; H is a multiple of K.
      segments: a number for each token, equal within one document (0 for padding, say); None for one
        document a row.
      window: a token sees itself and at most ``window - 1`` tokens before it; None for all of them.
      softcap: scores become ``softcap * tanh(score / softcap)`` before the mask (Gemma 2); None for none.
      scale: factor on the scores; default ``d ** -0.5``.

    Returns:
      The attended values, in q's type.
    """
    allowed = _allowed(0, 0, q.shape[1], segments, window)
    return attend(q, k, v, allowed, softcap=softcap, scale=scale)


def attend(
    q: Float[Array, "B Q H d"],
    k: Float[Array, "B C K d"],
    v: Float[Array, "B C K d"],
    allowed: Bool[Array, "#B #Q C"],
    *,
    softcap: float | None = None,
    scale: float | None = None,
) -> Float[Array, "B Q H d"]:
    """Softmax attention of queries over the allowed ones of C keys."""
    batch, length, heads, size = q.shape
    groups = q.reshape(batch, length, k.shape[2], heads // k.shape[2], size)
    scores = jnp.einsum("bqkgd,bckd->bkgqc", groups, k, preferred_element_type=jnp.float32)
    scores = capped(scores * (size**-0.5 if scale is None else scale), softcap)
    scores = jnp.where(allowed[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgqc,bckd->bqkgd", weights, v, preferred_element_type=jnp.float32)
    return out.reshape(q.shape).astype(q.dtype)


def attention(
    q: Queries,
    k: Keys,
    v: Keys,
    segments: Segments | None = None,
    *,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    mesh: Mesh | None = None,
) -> Queries:
    """The same as `reference_attention`, in blocks of queries against the keys up to their own end.

    Scores past a block are never formed, and the backward pass forms each block's scores again from a
    saved log-sum, as FlashAttention does (arXiv 2205.14135), so nothing of size S² outlives a layer; within
    one, the compiler may hold several blocks at once. The products of the backward pass that contract over
    queries transpose the d-sized side, not the scores.
    """
    length, kv_heads = q.shape[1], k.shape[2]
    groups = q.shape[2] // kv_heads
    q = q.reshape(*q.shape[:2], kv_heads, groups, -1).transpose(0, 2, 3, 1, 4)
    q, k, v = (checkpoint_name(x, INPUTS) for x in (q, k.swapaxes(1, 2), v.swapaxes(1, 2)))
    form = Form(_block_size(length), window, softcap, q.shape[-1] ** -0.5 if scale is None else scale)
    out = _blockwise(form, q, k, v, segments)
    return out.transpose(0, 3, 1, 2, 4).reshape(*out.shape[:1], length, kv_heads * groups, -1)


def _block_size(length: int) -> int:
    """Small blocks skip more scores; long rows take larger ones to keep the unrolled program short."""
    return 128 if length <= 2048 else 512


class Form(NamedTuple):
    """What is fixed when attention is compiled."""

    block: int
    window: int | None
    softcap: float | None
    scale: float


# Inside, queries are [B, K, G, S, d] and keys and values [B, K, S, d].


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blockwise(form: Form, q: Array, k: Array, v: Array, segments: Array | None) -> Array:
    return _forward(form, q, k, v, segments)[0]


def _forward(
    form: Form, q: Array, k: Array, v: Array, segments: Array | None
) -> tuple[Array, tuple[Array | None, ...]]:
    outputs, log_sums = [], []
    for first, start, stop in _spans(q.shape[3], form):
        allowed = _allowed(first, start, stop, segments, form.window)
        scores = _scores(form, q[:, :, :, start:stop], k[:, :, first:stop], allowed)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        attended = _product(weights.astype(v.dtype), v[:, :, first:stop], 1)
        outputs.append((attended / total).astype(q.dtype))
        log_sums.append((top + jnp.log(total))[..., 0])
    out = checkpoint_name(jnp.concatenate(outputs, axis=3), OUTPUT)
    log_sum = checkpoint_name(jnp.concatenate(log_sums, axis=3), OUTPUT)
    return out, (q, k, v, segments, out, log_sum)


def _backward(form: Form, saved: tuple[Any, ...], d_out: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, segments, out, log_sum = saved
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    d_q = []
    d_k = jnp.zeros(k.swapaxes(2, 3).shape, jnp.float32)
    d_v = jnp.zeros(v.swapaxes(2, 3).shape, jnp.float32)
    for first, start, stop in _spans(q.shape[3], form):
        queries, keys, values = q[:, :, :, start:stop], k[:, :, first:stop], v[:, :, first:stop]
        d_block = d_out[:, :, :, start:stop]
        scores = _scores(form, queries, keys, _allowed(first, start, stop, segments, form.window))
        weights = jnp.exp(scores - log_sum[:, :, :, start:stop, None])
        d_weights = _product(d_block, values, 2)
        d_scores = weights * (d_weights - delta[:, :, :, start:stop])
        if form.softcap is not None:
            d_scores = d_scores * (1 - jnp.square(jnp.maximum(scores, -form.softcap) / form.softcap))
        d_scores = (d_scores * form.scale).astype(q.dtype)
        d_q.append(_product(d_scores, keys, 1).astype(q.dtype))
        d_k = d_k.at[..., first:stop].add(_over_queries(queries, d_scores))
        d_v = d_v.at[..., first:stop].add(_over_queries(d_block, weights.astype(q.dtype)))
    d_k, d_v = d_k.swapaxes(2, 3).astype(k.dtype), d_v.swapaxes(2, 3).astype(v.dtype)
    return jnp.concatenate(d_q, axis=3), d_k, d_v, None


_blockwise.defvjp(_forward, _backward)


def _spans(length: int, form: Form) -> list[tuple[int, int, int]]:
    """(first key, first query, end of both) of each block of queries."""
    reach = length if form.window is None else form.window - 1
    return [
        (max(0, start - reach), start, min(start + form.block, length))
        for start in range(0, length, form.block)
    ]


def _scores(form: Form, q: Array, k: Array, allowed: Array) -> Float[Array, "B K G Q C"]:
    scores = capped(_product(q, k, 2) * form.scale, form.softcap)
    return jnp.where(allowed[:, None, None], scores, MASKED)


def capped(scores: Array, softcap: float | None) -> Array:
    """Bounded to ± softcap by a tanh; as they are where it is None."""
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def _product(left: Float[Array, "B K G Q x"], right: Array, right_axis: int) -> Array:
    """Contract left's last axis with ``right_axis`` (1 or 2, after B) of right [B, K, C, d], in f32."""
    batch, heads, groups, length, size = left.shape
    rows = left.reshape(batch, heads, groups * length, size)
    dimensions = (((3,), (right_axis + 1,)), ((0, 1), (0, 1)))
    out = jax.lax.dot_general(rows, right, dimensions, preferred_element_type=jnp.float32)
    return out.reshape(batch, heads, groups, length, -1)


def _over_queries(
    small: Float[Array, "B K G Q d"], large: Float[Array, "B K G Q C"]
) -> Float[Array, "B K d C"]:
    """Contract groups and queries, in f32, with the small side as the one to transpose."""
    batch, heads, groups, length, _ = small.shape
    left = small.reshape(batch, heads, groups * length, -1)
    right = large.reshape(batch, heads, groups * length, -1)
    dimensions = (((2,), (2,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def _allowed(
    first: int, start: int, stop: int, segments: Segments | None, window: int | None
) -> Bool[Array, "#B Q C"]:
    """Which of the tokens from ``first`` to ``stop`` each token from ``start`` to ``stop`` may see."""
    behind = np.arange(start, stop)[:, None] - np.arange(first, stop)[None, :]
    seen = jnp.asarray(((behind >= 0) if window is None else (behind >= 0) & (behind < window))[None])
    if segments is None:
        return seen
    return seen & (segments[:, start:stop, None] == segments[:, None, first:stop])
