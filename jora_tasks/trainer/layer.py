"""One layer of a decoder: norms, rotary embedding, attention near or far, and the MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jora_tasks.spec import LoraConfig
from jora_tasks.trainer.attention import attention
from jora_tasks.trainer.config import DecoderConfig
from jora_tasks.trainer.lora import LoraTree, linear
from jora_tasks.trainer.mesh import constrain
from jora_tasks.trainer.parameters import BaseTree
from jora_tasks.trainer.rope import RopeConfig

STREAM, WIDE, UNNORMED = "stream_after_attention", "gate_and_up", "before_inner_norm"
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}

Tables = tuple[Array, Array]  # cosine and sine
T = TypeVar("T")


def rope_tables(
    rope: RopeConfig, head_dim: int, positions: Int[Array, "*P"], length: Int[Array, "*#P"] | int = 0
) -> Tables:
    """Cosine and sine of each position's angles, f32 [*P, half].

    Args:
      rope: the frequencies.
      head_dim: size of a head.
      positions: of tokens in their texts.
      length: of the text that each token is in, which some frequencies depend on.
    """
    frequencies = jnp.asarray(rope.frequencies(head_dim))
    if rope.long_factors:
        long = jnp.asarray(length)[..., None] > rope.original_max_positions
        frequencies = jnp.where(long, rope.frequencies(head_dim, long=True), frequencies)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor


def layer_tables(config: DecoderConfig, positions: Array, length: Array | int) -> tuple[Tables, Tables]:
    """`rope_tables` of layers with a window, and of the others."""
    tables = rope_tables(config.rope, config.head_dim, positions, length)
    if config.local_rope == config.rope:
        return tables, tables
    return rope_tables(config.local_rope, config.head_dim, positions, length), tables


def text_lengths(positions: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """How long the text of each token is, where positions count up from 0 in every text of a row."""
    slots = jnp.arange(positions.shape[1])
    last = jnp.pad(positions[:, 1:] == 0, ((0, 0), (0, 1)), constant_values=True)
    ends = jax.lax.cummin(jnp.where(last, slots, positions.shape[1]), axis=1, reverse=True)
    return jnp.take_along_axis(positions, ends, axis=1) + 1


def _rotate(x: Float[Array, "B S H d"], tables: Tables) -> Float[Array, "B S H d"]:
    """Rotate pairs (i, i + n/2) of the first n numbers of each head, in f32."""
    cos, sin = (table[..., None, :] for table in tables)
    half = cos.shape[-1]
    low, high, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin, rest], axis=-1).astype(x.dtype)


def rms_norm(config: DecoderConfig, x: Float[Array, "*T D"], norm: BaseTree) -> Float[Array, "*T D"]:
    """x over its root mean square, times the norm's scale, in f32."""
    wide = x.astype(jnp.float32)
    scaled = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.rms_norm_eps)
    return (scaled * (norm["weight"].astype(jnp.float32) + config.norm_offset)).astype(x.dtype)


def local_flags(config: DecoderConfig) -> Bool[Array, " L"] | None:
    """Whether each layer attends within the window only; None where all layers are alike."""
    return jnp.asarray(config.local_layers) if len(set(config.local_layers)) > 1 else None


def by_layer(config: DecoderConfig, local: Bool[Array, ""] | None, of_local: T, of_global: T) -> T:
    """The one of two trees of arrays that fits this layer, whose flag is ``local``."""
    if local is None:
        return of_local if any(config.local_layers) else of_global
    if of_local is of_global:
        return of_global
    return jax.tree.map(partial(jnp.where, local), of_local, of_global)


def attend_by_layer(
    config: DecoderConfig,
    local: Bool[Array, ""] | None,
    q: Array,
    k: Array,
    v: Array,
    segments: Int[Array, "B S"] | None = None,
    mesh: Mesh | None = None,
) -> Array:
    """Attention as this layer has it. A local layer computes no score of blocks outside its window."""
    everywhere = partial(attention, softcap=config.attention_softcap, scale=config.attention_scale, mesh=mesh)
    if config.window is None or config.window >= q.shape[1] or not any(config.local_layers):
        return everywhere(q, k, v, segments)
    nearby = partial(everywhere, window=config.window)
    if local is None:
        return nearby(q, k, v, segments)
    return jax.lax.cond(local, nearby, everywhere, q, k, v, segments)


@dataclass(frozen=True)
class Block:
    """One layer's forward pass over its slices of the stacked trees."""

    config: DecoderConfig
    lora_config: LoraConfig | None
    mesh: Mesh | None

    def project(
        self, name: str, x: Array, base: BaseTree, lora: LoraTree | None, key: jax.Array | None
    ) -> Array:
        adapter = lora.get(name) if lora is not None else None
        scale, dropout = (
            (self.lora_config.scale, self.lora_config.lora_dropout) if self.lora_config else (0.0, 0.0)
        )
        if key is not None:
            key = jax.random.fold_in(key, list(self.config.projections).index(name))
        y = linear(x, base[name]["weight"], adapter, scale, dropout, key)
        if "bias" in base[name]:
            y = y + base[name]["bias"]
        axis = {"embed": "stream"}.get(*[self.config.projections[name].out_axis] * 2)
        return constrain(y, self.mesh, ("batch", "sequence", axis))

    def __call__(
        self,
        x: Float[Array, "B S D"],
        base: BaseTree,
        lora: LoraTree | None,
        key: jax.Array | None,
        tables: tuple[Array, Array],
        mix: Callable[[Array, Array, Array], tuple[Array, Any]],
    ) -> tuple[Float[Array, "B S D"], Any]:
        """``mix`` attends: (q, k, v) → (attended values, whatever the caller collects)."""
        config = self.config
        project = partial(self.project, base=base, lora=lora, key=key)

        def normed(x: Array, name: str) -> Array:
            return rms_norm(config, checkpoint_name(x, UNNORMED), base[name])

        q, k, v = self.attention_inputs(rms_norm(config, x, base["input_norm"]), project)
        if config.qk_norm:
            q, k = normed(q, "q_norm"), normed(k, "k_norm")
        attended, collected = mix(_rotate(q, tables), _rotate(k, tables), v)
        out = project("o_proj", attended.reshape(*x.shape[:2], -1))
        if config.sandwich_norms:
            out = normed(out, "attention_out_norm")
        x = checkpoint_name(x + out, STREAM)
        out = project("down_proj", self.gated(rms_norm(config, x, base["mlp_norm"]), project))
        if config.sandwich_norms:
            out = normed(out, "mlp_out_norm")
        return constrain(x + out, self.mesh, ("batch", "sequence", "stream")), collected

    def attention_inputs(self, x: Float[Array, "B S D"], project: Callable[..., Array]) -> list[Array]:
        """Queries, keys and values, [B, S, heads, d]."""
        config = self.config
        if config.fused:
            bounds = (config.query_size, config.query_size + config.key_size)
            parts = [
                constrain(part, self.mesh, ("batch", "sequence", axis))
                for part, axis in zip(
                    jnp.split(project("qkv_proj", x), bounds, axis=-1),
                    ("heads", "kv_heads", "kv_heads"),
                    strict=True,
                )
            ]
        else:
            parts = [project(name, x) for name in ("q_proj", "k_proj", "v_proj")]
        return [part.reshape(*x.shape[:2], -1, config.head_dim) for part in parts]

    def gated(self, x: Float[Array, "B S D"], project: Callable[..., Array]) -> Float[Array, "B S F"]:
        """The MLP's wide middle: activation(gate) * up, in f32."""
        if self.config.fused:
            gate, up = jnp.split(checkpoint_name(project("gate_up_proj", x), WIDE), 2, axis=-1)
        else:
            gate, up = (checkpoint_name(project(name, x), WIDE) for name in ("gate_proj", "up_proj"))
        activate = ACTIVATIONS[self.config.activation]
        wide = (activate(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)
        return constrain(wide, self.mesh, ("batch", "sequence", "ff"))
