"""A decoder of any supported family, as pure functions of plain nested dicts of arrays.

The forward pass scans over the stacked layers, so compile time does not grow with depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jora_tasks.spec import LoraConfig
from jora_tasks.trainer.blockwise import capped
from jora_tasks.trainer.config import DecoderConfig
from jora_tasks.trainer.embed import embed
from jora_tasks.trainer.layer import (
    INPUT,
    Block,
    attend_by_layer,
    by_layer,
    in_chunks,
    layer_tables,
    local_flags,
    rms_norm,
    text_lengths,
)
from jora_tasks.trainer.lora import LoraTree, stacked, trained_whole
from jora_tasks.trainer.mesh import batch_multiple, constrain, platform
from jora_tasks.trainer.parameters import BaseTree
from jora_tasks.trainer.remat import checkpoint_policy, choices, kept
from jora_tasks.trainer.targets import EMBEDDING, HEAD


def embed_tokens(
    config: DecoderConfig, base: BaseTree, lora: LoraTree | None, tokens: Array, mesh: Mesh | None
) -> Array:
    """The first residual stream, [*T, D], by the adapter's embedding or the base's."""
    trained = trained_whole(lora, EMBEDDING)
    x = embed(base["embed"] if trained is None else trained, tokens, mesh).astype(base["embed"].dtype)
    if config.embed_scale != 1.0:
        x = x * jnp.asarray(config.embed_scale, x.dtype)  # rounded to the type, as in training
    return constrain(x, mesh, ("batch", "tokens", "stream"))


def hidden_states(
    config: DecoderConfig,
    lora_config: LoraConfig | None,
    base: BaseTree,
    lora: LoraTree | None,
    tokens: Int[Array, "B S"],
    segments: Int[Array, "B S"] | None = None,
    *,
    positions: Int[Array, "B S"] | None = None,
    dropout_key: jax.Array | None = None,
    remat: str = "auto",
    mesh: Mesh | None = None,
) -> Float[Array, "B S D"]:
    """The last layer's normed output at every position.

    Args:
      config: the decoder.
      lora_config: scale and dropout of ``lora``; None without one.
      base: frozen weights, `describe`'s paths, in the type to compute in.
      lora: f32 adapter with stacked layers, or None.
      tokens: rows filled from the left, padding after them.
      segments: a number for each token, equal within one example of the row; None for one example a row.
        Padding then needs no segment of its own, since only later padding attends to it.
      positions: of each token in its example, where a row holds several; None counts from the row's start.
      dropout_key: applies the adapter's dropout, another mask in each layer and projection.
      remat: what the backward pass finds of a layer; see `remat.choices`, of which the first is taken.
      mesh: of the arrays; None on one device.
    """
    long = in_chunks(tokens.shape[1], mesh)
    policy = choices(remat, long, platform(mesh))[0]
    layer = Block(config, lora_config, mesh, chunked=kept(policy) == "full")
    if positions is None:
        length: Array | int = tokens.shape[1]
        positions = jnp.arange(length)
    else:
        length = text_lengths(positions)
    tables = layer_tables(config, positions, length)

    def step(
        x: Array, slices: tuple[BaseTree, LoraTree | None, jax.Array | None, jax.Array | None]
    ) -> tuple[Array, None]:
        x = checkpoint_name(x, INPUT)
        weights, adapter, key, local = slices
        mix = partial(attend_by_layer, config, local, segments=segments, mesh=mesh)
        near_or_far = by_layer(config, local, *tables)
        return layer(x, weights, adapter, key, near_or_far, lambda q, k, v: (mix(q, k, v), None))

    step = jax.checkpoint(step, prevent_cse=False, policy=checkpoint_policy(policy))
    keys = None if dropout_key is None else jax.random.split(dropout_key, config.num_hidden_layers)
    x = embed_tokens(config, base, lora, tokens, mesh)
    x, _ = jax.lax.scan(step, x, (base["layers"], stacked(lora), keys, local_flags(config)))
    return rms_norm(config, x, base["norm"])


def head_weight(config: DecoderConfig, base: BaseTree, lora: LoraTree | None) -> Float[Array, "V D"]:
    """The weight that turns hidden states into logits: the adapter's f32 one, or the base's.

    A tied base has its embedding for it, also where the adapter has an embedding of its own (as in PEFT).
    """
    trained = trained_whole(lora, HEAD)
    if trained is not None:
        return trained
    return base["embed"] if config.tie_word_embeddings else base["head"]


def project_logits(
    config: DecoderConfig, base: BaseTree, lora: LoraTree | None, hidden: Float[Array, "*T D"]
) -> Float[Array, "*T V"]:
    """Hidden states → f32 logits."""
    head = head_weight(config, base, lora).astype(hidden.dtype)
    logits = jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=jnp.float32)
    return capped(logits, config.logit_softcap)


@partial(jax.jit, static_argnames=("config", "lora_config", "mesh"))
def _logits(
    config: DecoderConfig,
    lora_config: LoraConfig | None,
    base: BaseTree,
    lora: LoraTree | None,
    tokens: Array,
    mesh: Mesh | None,
) -> Array:
    hidden = hidden_states(config, lora_config, base, lora, tokens, remat="full", mesh=mesh)
    return project_logits(config, base, lora, hidden)


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model: what it is, its frozen weights and, if any, its adapter.

    ``base`` and ``lora`` are plain nested dicts of arrays; ``lora`` is f32 and None without an adapter.
    """

    config: DecoderConfig
    base: BaseTree
    lora: LoraTree | None = None
    lora_config: LoraConfig | None = None
    mesh: Mesh | None = None

    def logits(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S V"]:
        """f32 logits of the next token at every position of every row, with the adapter if there is one."""
        rows = np.asarray(tokens, np.int32)
        if rows.ndim != 2:
            raise ValueError(f"tokens must be [B, S], rows of token ids, not of shape {list(rows.shape)}")
        spare = -len(rows) % batch_multiple(self.mesh)
        padded = np.pad(rows, ((0, spare), (0, 0)))
        out = _logits(self.config, self.lora_config, self.base, self.lora, padded, self.mesh)
        return out[: len(rows)]
