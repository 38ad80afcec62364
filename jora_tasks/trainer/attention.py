"""Causal attention with grouped key and value heads.

Query head h reads key and value head ``h // (heads / kv_heads)``: the order of transformers' Llama.
Scores and softmax are f32 whatever the inputs' type. Keys and values are never repeated in memory.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30  # finite, so that a row without any allowed key gives no NaN
DENSE_LENGTH = 1024
BLOCK = 512


def attention(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B S K d"],
    v: Float[Array, "B S K d"],
    segments: Int[Array, "B S"] | None = None,
) -> Float[Array, "B S H d"]:
    """Each token attends to itself and the earlier tokens of its segment.

    Args:
      q, k, v: queries, keys and values; H is a multiple of K.
      segments: a number for each token, equal within one document (0 for padding, say); None for one
        document a row.

    Returns:
      The attended values, in q's type. Short rows take `dense_attention`, long ones
      `blockwise_attention`, whose memory grows with S, not S².
    """
    if q.shape[1] <= DENSE_LENGTH:
        return dense_attention(q, k, v, segments)
    return blockwise_attention(q, k, v, segments)


def dense_attention(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B S K d"],
    v: Float[Array, "B S K d"],
    segments: Int[Array, "B S"] | None = None,
) -> Float[Array, "B S H d"]:
    """The reference: all scores at once."""
    positions = jnp.arange(q.shape[1])
    return attend(q, k, v, _allowed(positions, positions, segments, segments))


def blockwise_attention(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B S K d"],
    v: Float[Array, "B S K d"],
    segments: Int[Array, "B S"] | None = None,
    block: int = BLOCK,
) -> Float[Array, "B S H d"]:
    """The same in blocks of queries, each against the keys up to its own end only.

    Half the scores of `dense_attention` are never formed, and the backward pass forms each block's
    scores again instead of keeping them.
    """
    outputs = []
    for start in range(0, q.shape[1], block):
        stop = min(start + block, q.shape[1])

        @jax.checkpoint
        def one(q: Array, k: Array, v: Array, start: int = start, stop: int = stop) -> Array:
            allowed = _allowed(
                jnp.arange(start, stop),
                jnp.arange(stop),
                None if segments is None else segments[:, start:stop],
                None if segments is None else segments[:, :stop],
            )
            return attend(q, k, v, allowed)

        outputs.append(one(q[:, start:stop], k[:, :stop], v[:, :stop]))
    return jnp.concatenate(outputs, axis=1)


def attend(
    q: Float[Array, "B Q H d"],
    k: Float[Array, "B C K d"],
    v: Float[Array, "B C K d"],
    allowed: Bool[Array, "#B #Q C"],
) -> Float[Array, "B Q H d"]:
    """Softmax attention of queries over the allowed ones of C keys."""
    batch, length, heads, size = q.shape
    groups = q.reshape(batch, length, k.shape[2], heads // k.shape[2], size)
    scores = jnp.einsum("bqkgd,bckd->bkgqc", groups, k, preferred_element_type=jnp.float32)
    scores = jnp.where(allowed[:, None, None], scores * size**-0.5, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgqc,bckd->bqkgd", weights, v, preferred_element_type=jnp.float32)
    return out.reshape(q.shape).astype(q.dtype)


def _allowed(
    query_positions: Int[Array, " Q"],
    key_positions: Int[Array, " C"],
    query_segments: Int[Array, "B Q"] | None,
    key_segments: Int[Array, "B C"] | None,
) -> Bool[Array, "#B Q C"]:
    causal = (query_positions[:, None] >= key_positions[None, :])[None]
    if query_segments is None or key_segments is None:
        return causal
    return causal & (query_segments[:, :, None] == key_segments[:, None, :])
