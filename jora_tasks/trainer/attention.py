"""Causal attention with grouped key and value heads: the plain form, and the one that training uses.

Query head h reads key and value head ``h // (heads / kv_heads)``: the order of transformers' Llama.
Scores and softmax are f32 whatever the inputs' type. Keys and values are never repeated in memory.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jora_tasks.trainer.blockwise import INPUTS, MASKED, Form, blockwise, capped, product
from jora_tasks.trainer.mesh import RULES, fits, platform

LONG = 8192  # tokens of a row from which on memory decides rather than time
BLOCK, LONG_BLOCK = 256, 512

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
    allowed = _allowed(q.shape[1], segments, window)
    return attend(q, *as_read(k, v), allowed, softcap=softcap, scale=scale)


def as_read(k: Keys, v: Keys) -> tuple[Float[Array, "B K d S"], Float[Array, "B K S d"]]:
    """Keys and values as `attend`'s products read them, of which neither then is turned for a product."""
    return k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)


def attend(
    q: Float[Array, "B Q H d"],
    k: Float[Array, "B K d C"],
    v: Float[Array, "B K C d"],
    allowed: Bool[Array, "#B #Q C"],
    *,
    softcap: float | None = None,
    scale: float | None = None,
) -> Float[Array, "B Q H d"]:
    """Softmax attention of queries over the allowed ones of C keys."""
    grouped = q.reshape(*q.shape[:2], k.shape[1], -1, q.shape[3]).transpose(0, 2, 3, 1, 4)
    scores = product(grouped, k, 1) * (q.shape[3] ** -0.5 if scale is None else scale)
    scores = jnp.where(allowed[:, None, None], capped(scores, softcap), MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return product(weights, v, 1).transpose(0, 3, 1, 2, 4).reshape(q.shape).astype(q.dtype)


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
    """The same as `reference_attention`, without ever holding a row of scores.

    Over a mesh, each device attends from its own rows, heads and part of the sequence. The keys and values
    of the other parts are gathered; grouped heads make them small beside the queries' activations.

    Runs cuDNN's flash attention on an NVIDIA GPU where that covers the case, else `blockwise`.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    on_gpu = platform(mesh) == "gpu"
    from_offset = partial(_attend_from, window=window, softcap=softcap, scale=scale, on_gpu=on_gpu)
    axes = [("batch", "sequence", heads, None) for heads in ("heads", "kv_heads", "kv_heads")]
    if mesh is None or not all(fits(mesh, one, x.shape) for one, x in zip(axes, (q, k, v), strict=True)):
        return from_offset(0, q, k, v, segments, segments)
    parts = mesh.shape["sequence"]

    def local(q: Array, k: Array, v: Array, segments: Array | None) -> Array:
        offset: int | Array = 0
        all_segments = segments
        if parts > 1:
            offset = jax.lax.axis_index("sequence") * q.shape[1]
            gather = partial(jax.lax.all_gather, axis_name="sequence", axis=1, tiled=True)
            k, v = gather(k), gather(v)
            all_segments = None if segments is None else gather(segments)
        return from_offset(offset, q, k, v, segments, all_segments)

    specs = tuple(RULES.spec(one) for one in axes)
    rows = PartitionSpec() if segments is None else RULES.spec(("batch", "sequence"))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=(*specs, rows), out_specs=specs[0], check_vma=False)
    return mapped(q, k, v, segments)


def _attend_from(
    offset: int | Array,
    q: Float[Array, "B Q H d"],
    k: Float[Array, "B C K d"],
    v: Float[Array, "B C K d"],
    own: Int[Array, "B Q"] | None,
    theirs: Int[Array, "B C"] | None,
    *,
    window: int | None,
    softcap: float | None,
    scale: float,
    on_gpu: bool,
) -> Float[Array, "B Q H d"]:
    """Attention of the queries that stand at ``offset`` among the keys, on one device."""
    if on_gpu and _cudnn_can(offset, q, own, softcap):
        q, k, v = (checkpoint_name(x, INPUTS) for x in (q, k, v))
        reach = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(
            q, k, v, scale=scale, is_causal=True, local_window_size=reach, implementation="cudnn"
        )
    length, kv_heads = q.shape[1], k.shape[2]
    block = _block_size(length)
    form = Form(block, block, window, softcap, scale)
    q = q.reshape(*q.shape[:2], kv_heads, q.shape[2] // kv_heads, -1).transpose(0, 2, 3, 1, 4)
    q, k, v = (_padded(x, x.ndim - 2, block) for x in (q, k.swapaxes(1, 2), v.swapaxes(1, 2)))
    # Padded keys come after every real query, so that the causal rule hides them.
    segments = None if own is None or theirs is None else (_padded(own, 1, block), _padded(theirs, 1, block))
    out = blockwise(form, q, k, v, jnp.asarray(offset, jnp.int32), segments)
    return out[:, :, :, :length].transpose(0, 3, 1, 2, 4).reshape(out.shape[0], length, -1, out.shape[-1])


def _cudnn_can(offset: int | Array, q: Array, segments: Array | None, softcap: float | None) -> bool:
    whole = isinstance(offset, int) and segments is None and softcap is None
    narrow = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] <= 128
    return whole and narrow


def _block_size(length: int) -> int:
    """The blocks cover the length with little padding; long rows take larger ones, for fewer passes."""
    largest = BLOCK if length <= LONG else LONG_BLOCK
    blocks = -(-length // largest)
    return -(-length // (8 * blocks)) * 8


def _padded(x: Array, axis: int, multiple: int) -> Array:
    room = [(0, 0)] * x.ndim
    room[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, room) if room[axis][1] else x


def _allowed(length: int, segments: Segments | None, window: int | None) -> Bool[Array, "#B S S"]:
    """Which tokens each token may see."""
    behind = np.arange(length)[:, None] - np.arange(length)[None, :]
    seen = jnp.asarray(((behind >= 0) if window is None else (behind >= 0) & (behind < window))[None])
    return seen if segments is None else seen & (segments[:, :, None] == segments[:, None, :])
