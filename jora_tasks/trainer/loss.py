"""Cross-entropy of the scored tokens, without a [B, S, V] tensor.

Only the rows that predict a scored token meet the head, and they meet it a chunk at a time. Over a
frozen head the gradient of the rows, ``softmax(x W^T) W - W[target]``, is formed in the same pass as
the loss (the idea of Liger Kernel, arXiv 2410.10989): nothing is recomputed, no logits are kept,
and the target enters by a row of the head rather than by a one-hot.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jora_tasks.trainer.attention import capped

MAX_CHUNK_LOGITS = 1 << 24
"""Most logits alive at once: 64 MiB in f32."""


def answer_loss(
    hidden: Float[Array, "B S D"],
    head: Float[Array, "V D"],
    positions: Int[Array, "B K"],
    targets: Int[Array, "B K"],
    scored: Bool[Array, "B K"],
    softcap: float | None = None,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Summed loss of the scored tokens and their number.

    The head is frozen: no gradient flows to it.

    Args:
      hidden: final hidden states, after the last norm; f32 or bf16.
      head: output embedding, in any float type.
      positions: row of ``hidden`` that predicts each target, which is one before the target's own.
      targets: token ids.
      scored: false where an entry only pads; the true ones come first in each row.
      softcap: logits become ``softcap * tanh(logit / softcap)`` (Gemma 2); None leaves them.

    Returns:
      f32 sum of ``-log p(target)`` over scored entries (logits, softmax and sum in f32), and their count.
    """
    rows = jnp.take_along_axis(hidden, positions[:, :, None], axis=1)
    return _summed_loss(softcap, rows, head, targets, scored), jnp.sum(scored, dtype=jnp.int32)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed_loss(
    softcap: float | None,
    rows: Float[Array, "B K D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B K"],
    scored: Bool[Array, "B K"],
) -> Float[Array, ""]:
    return _chunked(softcap, rows, head, targets, scored, with_gradient=False)[0]


def _forward(
    softcap: float | None,
    rows: Float[Array, "B K D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B K"],
    scored: Bool[Array, "B K"],
) -> tuple[Float[Array, ""], Float[Array, "B K D"]]:
    return _chunked(softcap, rows, head, targets, scored, with_gradient=True)


def _backward(
    softcap: float | None, gradient: Float[Array, "B K D"], cotangent: Float[Array, ""]
) -> tuple[Any, None, None, None]:
    return (gradient * cotangent).astype(gradient.dtype), None, None, None


_summed_loss.defvjp(_forward, _backward)


def _chunked(
    softcap: float | None,
    rows: Float[Array, "B K D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B K"],
    scored: Bool[Array, "B K"],
    with_gradient: bool,
) -> tuple[Float[Array, ""], Float[Array, "B K D"]]:
    batch, width, _ = rows.shape
    chunk = min(width, max(1, MAX_CHUNK_LOGITS // (batch * head.shape[0])))
    padding = -width % chunk
    if padding:
        rows = jnp.pad(rows, ((0, 0), (0, padding), (0, 0)))
        targets = jnp.pad(targets, ((0, 0), (0, padding)))
        scored = jnp.pad(scored, ((0, 0), (0, padding)))

    def body(
        index: Int[Array, ""], carry: tuple[Float[Array, ""], Float[Array, "B K D"]]
    ) -> tuple[Float[Array, ""], Float[Array, "B K D"]]:
        total, gradient = carry
        start = index * chunk
        x, target, mask = (
            jax.lax.dynamic_slice_in_dim(array, start, chunk, axis=1) for array in (rows, targets, scored)
        )
        logits = jnp.einsum("bkd,vd->bkv", x, head, preferred_element_type=jnp.float32)
        logits = capped(logits, softcap)
        log_normaliser = jax.nn.logsumexp(logits, axis=-1)
        target_row = jnp.take(head, target, axis=0)
        target_logit = jnp.einsum("bkd,bkd->bk", x, target_row, preferred_element_type=jnp.float32)
        target_logit = capped(target_logit, softcap)
        total += jnp.sum(jnp.where(mask, log_normaliser - target_logit, 0))
        if with_gradient:
            weights = jnp.exp(logits - log_normaliser[..., None])
            pull = target_row.astype(jnp.float32)
            if softcap is not None:  # the slope of the cap, of every logit and of the target's
                weights *= 1 - jnp.square(logits / softcap)
                pull *= 1 - jnp.square(target_logit / softcap)[..., None]
            dx = jnp.einsum(
                "bkv,vd->bkd", weights.astype(head.dtype), head, preferred_element_type=jnp.float32
            )
            dx = jnp.where(mask[..., None], dx - pull, 0).astype(rows.dtype)
            gradient = jax.lax.dynamic_update_slice_in_dim(gradient, dx, start, axis=1)
        return total, gradient

    start = (jnp.zeros((), jnp.float32), jnp.zeros_like(rows))
    if width <= chunk:
        total, gradient = body(jnp.zeros((), jnp.int32), start)
    else:  # chunks past the longest answer of the batch hold padding only
        longest = jnp.max(jnp.sum(scored, axis=1, dtype=jnp.int32))
        total, gradient = jax.lax.fori_loop(0, (longest + chunk - 1) // chunk, body, start)
    return total, gradient[:, :width]
