"""Causal attention by blocks of queries and keys, as FlashAttention does it (arXiv 2205.14135, 2307.08691).

No row of scores is ever whole: the softmax is summed up block by block, and the backward pass forms each
block's scores again from a saved log-sum. Both passes are loops, so that one block at a time is alive
and the program does not grow with the length; blocks past the diagonal or before the window are skipped.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30  # finite, so that a row without any allowed key gives no NaN
OUTPUT = "attention_output"  # names under which a remat policy may keep what the backward pass reads
INPUTS = "attention_inputs"

Queries = Float[Array, "B K G Q d"]
Keys = Float[Array, "B K C d"]
Segments = Int[Array, "B C"]


class Form(NamedTuple):
    """What is fixed when attention is compiled: sizes of a block, and the rules of the scores."""

    queries: int
    keys: int
    window: int | None
    softcap: float | None
    scale: float


def capped(scores: Array, softcap: float | None) -> Array:
    """Bounded to ± softcap by a tanh; as they are where it is None."""
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def blockwise(
    form: Form,
    q: Queries,
    k: Keys,
    v: Keys,
    offset: Int[Array, ""],
    segments: tuple[Segments, Segments] | None,
) -> Queries:
    """Attend from Q queries to C keys; query i is the token at key ``offset + i``.

    Args:
      form: Q and C are multiples of its blocks.
      q, k, v: G query heads read each of K key heads.
      offset: of the queries among the keys.
      segments: of the queries and of the keys; a query sees keys of its own segment only.
    """
    return _forward(form, q, k, v, offset, segments)[0]


def _forward(
    form: Form, q: Array, k: Array, v: Array, offset: Array, segments: Any
) -> tuple[Array, tuple[Any, ...]]:
    q, k, v = (checkpoint_name(x, INPUTS) for x in (q, k, v))
    shape = (*q.shape[:3], form.queries)

    def one_block(start: Array, queries: Array) -> tuple[Array, Array]:
        def add(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            out, top, total = carry
            keys, values = (_keys_at(form, x, index) for x in (k, v))
            scores = _scores(form, queries, keys, _allowed(form, start, index, offset, segments))
            new_top = jnp.maximum(top, scores.max(axis=-1))
            weights = jnp.exp(scores - new_top[..., None])
            shrink = jnp.exp(top - new_top)
            out = out * shrink[..., None] + product(weights.astype(v.dtype), values, 1)
            return out, new_top, total * shrink + weights.sum(axis=-1)

        nothing = (
            jnp.zeros((*shape, v.shape[-1]), jnp.float32),
            jnp.full(shape, MASKED, jnp.float32),
            jnp.zeros(shape, jnp.float32),
        )
        out, top, total = jax.lax.fori_loop(*_span(form, start + offset, k.shape[2]), add, nothing)
        return (out / total[..., None]).astype(q.dtype), top + jnp.log(total)

    out, log_sum = _over_blocks(form, one_block, q)
    out = checkpoint_name(_joined(out), OUTPUT)
    log_sum = checkpoint_name(_joined(log_sum[..., None])[..., 0], OUTPUT)
    return out, (q, k, v, offset, segments, out, log_sum)


def _backward(form: Form, saved: tuple[Any, ...], d_out: Array) -> tuple[Any, ...]:
    q, k, v, offset, segments, out, log_sum = saved
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)

    def one_block(carry: tuple[Array, Array], item: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        start, queries, d_block, block_delta, block_sum = item

        def add(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            d_queries, d_k, d_v = carry
            keys, values = (_keys_at(form, x, index) for x in (k, v))
            scores = _scores(form, queries, keys, _allowed(form, start, index, offset, segments))
            weights = jnp.exp(scores - block_sum[..., None])
            d_scores = weights * (product(d_block, values, 2) - block_delta[..., None])
            if form.softcap is not None:
                d_scores = d_scores * (1 - jnp.square(jnp.maximum(scores, -form.softcap) / form.softcap))
            d_scores = (d_scores * form.scale).astype(q.dtype)
            d_queries = d_queries + product(d_scores, keys, 1)
            d_k = _added(form, d_k, index, _over_queries(queries, d_scores))
            d_v = _added(form, d_v, index, _over_queries(d_block, weights.astype(q.dtype)))
            return d_queries, d_k, d_v

        nothing = jnp.zeros(queries.shape, jnp.float32)
        span = _span(form, start + offset, k.shape[2])
        d_queries, *d_keys = jax.lax.fori_loop(*span, add, (nothing, *carry))
        return (d_keys[0], d_keys[1]), d_queries.astype(q.dtype)

    turned = (*k.shape[:2], k.shape[3], k.shape[2])
    nothing = (jnp.zeros(turned, jnp.float32), jnp.zeros(turned, jnp.float32))
    parts = [_blocks(form, x) for x in (q, d_out)] + [
        _blocks(form, x[..., None])[..., 0] for x in (delta, log_sum)
    ]
    starts = jnp.arange(parts[0].shape[0]) * form.queries
    (d_k, d_v), d_q = jax.lax.scan(one_block, nothing, (starts, *parts))
    d_k, d_v = d_k.swapaxes(2, 3).astype(k.dtype), d_v.swapaxes(2, 3).astype(v.dtype)
    return _joined(d_q), d_k, d_v, None, None


blockwise.defvjp(_forward, _backward)


def _over_blocks(form: Form, one_block: Any, q: Array) -> Any:
    blocks = _blocks(form, q)
    return jax.lax.map(lambda item: one_block(*item), (jnp.arange(blocks.shape[0]) * form.queries, blocks))


def _blocks(form: Form, x: Float[Array, "B K G Q d"]) -> Float[Array, "N B K G q d"]:
    split = x.reshape(*x.shape[:3], -1, form.queries, x.shape[4])
    return jnp.moveaxis(split, 3, 0)


def _joined(x: Float[Array, "N B K G q d"]) -> Float[Array, "B K G Q d"]:
    x = jnp.moveaxis(x, 0, 3)
    return x.reshape(*x.shape[:3], -1, x.shape[5])


def _keys_at(form: Form, x: Keys, index: Array) -> Keys:
    return jax.lax.dynamic_slice_in_dim(x, index * form.keys, form.keys, axis=2)


def _added(form: Form, total: Float[Array, "B K d C"], index: Array, part: Array) -> Array:
    start = index * form.keys
    before = jax.lax.dynamic_slice_in_dim(total, start, form.keys, axis=3)
    return jax.lax.dynamic_update_slice_in_dim(total, before + part, start, axis=3)


def _span(form: Form, first: Array, keys: int) -> tuple[Array, Array]:
    """The blocks of keys that queries from ``first`` on may see: from, to."""
    last = jnp.minimum(first + form.queries - 1, keys - 1)
    start = jnp.zeros_like(first) if form.window is None else jnp.maximum(first - form.window + 1, 0)
    return start // form.keys, last // form.keys + 1


def _allowed(form: Form, start: Array, index: Array, offset: Array, segments: Any) -> Bool[Array, "#B q c"]:
    behind = (start + offset + jnp.arange(form.queries))[:, None] - (
        index * form.keys + jnp.arange(form.keys)
    )
    seen = behind >= 0
    if form.window is not None:
        seen = seen & (behind < form.window)
    if segments is None:
        return seen[None]
    own = jax.lax.dynamic_slice_in_dim(segments[0], start, form.queries, axis=1)
    theirs = jax.lax.dynamic_slice_in_dim(segments[1], index * form.keys, form.keys, axis=1)
    return seen & (own[:, :, None] == theirs[:, None, :])


def _scores(form: Form, q: Array, k: Array, allowed: Array) -> Float[Array, "B K G q c"]:
    scores = capped(product(q, k, 2) * form.scale, form.softcap)
    return jnp.where(allowed[:, None, None], scores, MASKED)


def product(left: Float[Array, "B K G q x"], right: Array, right_axis: int) -> Array:
    """Contract left's last axis with ``right_axis`` (1 or 2, after B) of right [B, K, c, d], in f32."""
    batch, heads, groups, length, size = left.shape
    rows = left.reshape(batch, heads, groups * length, size)
    dimensions = (((3,), (right_axis + 1,)), ((0, 1), (0, 1)))
    out = jax.lax.dot_general(rows, right, dimensions, preferred_element_type=jnp.float32)
    return out.reshape(batch, heads, groups, length, -1)


def _over_queries(
    small: Float[Array, "B K G q d"], large: Float[Array, "B K G q c"]
) -> Float[Array, "B K d c"]:
    """Contract groups and queries, in f32, with the small side as the one to transpose."""
    batch, heads, groups, length, _ = small.shape
    left = small.reshape(batch, heads, groups * length, -1)
    right = large.reshape(batch, heads, groups * length, -1)
    dimensions = (((2,), (2,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)
