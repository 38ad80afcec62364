"""Cross-entropy of the scored tokens, without a [B, S, V] tensor.

Only the rows that predict a scored token meet the head, and they meet it a chunk at a time. Over a
frozen head the gradient of the rows, ``softmax(x W^T) W - W[target]``, is formed in the same pass as
the loss (the idea of Liger Kernel, arXiv 2410.10989): nothing is recomputed, no logits are kept,
and the target enters by a row of the head rather than by a one-hot. The gradient of a head that is
trained itself, ``(softmax(x W^T) - onehot)^T x``, is added up in f32 on the same way.
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
    *,
    head_is_trained: bool = False,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Summed loss of the scored tokens and their number.

    Args:
      hidden: final hidden states, after the last norm; f32 or bf16.
      head: output embedding, in any float type; used in that of ``hidden``.
      positions: row of ``hidden`` that predicts each target, which is one before the target's own.
      targets: token ids.
      scored: false where an entry only pads; the true ones come first in each row.
      softcap: logits become ``softcap * tanh(logit / softcap)`` (Gemma 2); None leaves them.
      head_is_trained: whether a gradient flows to the head; over a frozen one it is zero and costs nothing.

    Returns:
      f32 sum of ``-log p(target)`` over scored entries (logits, softmax and sum in f32), and their count.
    """
    rows = jnp.take_along_axis(hidden, positions[:, :, None], axis=1)
    summed = _summed_loss(softcap, head_is_trained, rows, head, targets, scored)
    return summed, jnp.sum(scored, dtype=jnp.int32)


Gradients = tuple[Float[Array, "B K D"] | None, Float[Array, "V D"] | None]  # of the rows and of the head


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed_loss(
    softcap: float | None,
    head_is_trained: bool,
    rows: Float[Array, "B K D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B K"],
    scored: Bool[Array, "B K"],
) -> Float[Array, ""]:
    return _chunked(softcap, rows, head, targets, scored, (None, None))[0]


def _forward(
    softcap: float | None,
    head_is_trained: bool,
    rows: Float[Array, "B K D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B K"],
    scored: Bool[Array, "B K"],
) -> tuple[Float[Array, ""], Gradients]:
    of_head = jnp.zeros(head.shape, jnp.float32) if head_is_trained else None
    return _chunked(softcap, rows, head, targets, scored, (jnp.zeros_like(rows), of_head))


def _backward(
    softcap: float | None, head_is_trained: bool, gradients: Gradients, cotangent: Float[Array, ""]
) -> tuple[Any, Any, None, None]:
    of_rows, of_head = (None if each is None else (each * cotangent).astype(each.dtype) for each in gradients)
    return of_rows, of_head, None, None


_summed_loss.defvjp(_forward, _backward)


def _chunked(
    softcap: float | None,
    rows: Float[Array, "B K D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B K"],
    scored: Bool[Array, "B K"],
    gradients: Gradients,
) -> tuple[Float[Array, ""], Gradients]:
    """The summed loss, and ``gradients`` (zeros, or None for what is not asked for) filled in."""
    head = head.astype(rows.dtype)
    batch, width, _ = rows.shape
    chunk = min(width, max(1, MAX_CHUNK_LOGITS // (batch * head.shape[0])))
    of_rows, of_head = gradients
    padding = -width % chunk
    if padding:
        rows = jnp.pad(rows, ((0, 0), (0, padding), (0, 0)))
        targets = jnp.pad(targets, ((0, 0), (0, padding)))
        scored = jnp.pad(scored, ((0, 0), (0, padding)))
        of_rows = None if of_rows is None else jnp.zeros_like(rows)

    def body(
        index: Int[Array, ""], carry: tuple[Float[Array, ""], Gradients]
    ) -> tuple[Float[Array, ""], Gradients]:
        total, (of_rows, of_head) = carry
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
        if of_rows is not None:
            weights = jnp.exp(logits - log_normaliser[..., None])
            pull = jnp.where(mask, 1.0, 0.0)
            if softcap is not None:  # the slope of the cap, of every logit and of the target's
                weights *= 1 - jnp.square(logits / softcap)
                pull *= 1 - jnp.square(target_logit / softcap)
            weights = (weights * mask[..., None]).astype(head.dtype)
            dx = jnp.einsum("bkv,vd->bkd", weights, head, preferred_element_type=jnp.float32)
            dx = (dx - pull[..., None] * target_row.astype(jnp.float32)).astype(rows.dtype)
            of_rows = jax.lax.dynamic_update_slice_in_dim(of_rows, dx, start, axis=1)
        if of_head is not None:
            of_head += jnp.einsum("bkv,bkd->vd", weights, x, preferred_element_type=jnp.float32)
            of_head = of_head.at[target].add(-pull[..., None] * x.astype(jnp.float32))
        return total, (of_rows, of_head)

    start = (jnp.zeros((), jnp.float32), (of_rows, of_head))
    if width <= chunk:
        total, (of_rows, of_head) = body(jnp.zeros((), jnp.int32), start)
    else:  # chunks past the longest answer of the batch hold padding only
        longest = jnp.max(jnp.sum(scored, axis=1, dtype=jnp.int32))
        total, (of_rows, of_head) = jax.lax.fori_loop(0, (longest + chunk - 1) // chunk, body, start)
    return total, (None if of_rows is None else of_rows[:, :width], of_head)
