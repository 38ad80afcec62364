"""Reading a prompt once and then token by token: keys and values are kept, not computed again."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jora_tasks.spec import LoraConfig
from jora_tasks.trainer.attention import attend
from jora_tasks.trainer.config import DecoderConfig
from jora_tasks.trainer.layer import Block, attend_by_layer, by_layer, layer_tables, local_flags, rms_norm
from jora_tasks.trainer.lora import LoraTree, stacked
from jora_tasks.trainer.model import embed_tokens, project_logits
from jora_tasks.trainer.parameters import BaseTree


class KVCache(NamedTuple):
    """Keys and values of every layer, [L, B, C, K, d]."""

    keys: jax.Array
    values: jax.Array


def prefill(
    config: DecoderConfig,
    lora_config: LoraConfig | None,
    base: BaseTree,
    lora: LoraTree | None,
    tokens: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    extra: int,
    *,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "B V"], KVCache]:
    """Read prompts filled from the left; keep their keys and values.

    Args:
      tokens: prompts, padding after them.
      lengths: tokens in each row, at least 1.
      extra: how many more tokens the cache must hold.

    Returns:
      Logits of the token after each prompt, and a cache of S + extra slots a row.
    """
    layer = Block(config, lora_config, mesh)
    positions = jnp.arange(tokens.shape[1])[None]
    tables = layer_tables(config, positions, (lengths + extra)[:, None])
    room = ((0, 0), (0, extra), (0, 0), (0, 0))

    def step(
        x: Array, slices: tuple[BaseTree, LoraTree | None, jax.Array | None]
    ) -> tuple[Array, tuple[Array, Array]]:
        weights, adapter, local = slices

        def mix(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
            attended = attend_by_layer(config, local, q, k, v, mesh=mesh)
            return attended, (jnp.pad(k, room), jnp.pad(v, room))

        return layer(x, weights, adapter, None, by_layer(config, local, *tables), mix)

    x = embed_tokens(config, base, lora, tokens, mesh)
    x, cache = jax.lax.scan(step, x, (base["layers"], stacked(lora), local_flags(config)))
    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return project_logits(config, base, lora, rms_norm(config, last, base["norm"])), KVCache(*cache)


def decode_step(
    config: DecoderConfig,
    lora_config: LoraConfig | None,
    base: BaseTree,
    lora: LoraTree | None,
    tokens: Int[Array, " B"],
    lengths: Int[Array, " B"],
    prompt_slots: int,
    step_index: Int[Array, ""],
    cache: KVCache,
    *,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "B V"], KVCache]:
    """Read one more token in every row.

    The token of step t goes to slot ``prompt_slots + t`` in every row, whatever the row's length, so
    that the cache is written in one place; its position is ``lengths + t``.

    Args:
      tokens: the tokens chosen last.
      lengths: tokens in each prompt.
      prompt_slots: S of `prefill`.
      step_index: t, from 0.
      cache: of `prefill` or the step before.

    Returns:
      Logits of the next token, and the cache with this one.
    """
    layer = Block(config, lora_config, mesh)
    slot, position = prompt_slots + step_index, lengths + step_index
    slots = jnp.arange(cache.keys.shape[2])
    generated = (slots >= prompt_slots) & (slots <= slot)
    everywhere = (slots < lengths[:, None]) | generated
    behind = jnp.where(generated, slot - slots, position[:, None] - slots)
    nearby = everywhere if config.window is None else everywhere & (behind < config.window)
    room = cache.keys.shape[2] - prompt_slots
    tables = layer_tables(config, position[:, None], (lengths + room)[:, None])

    def step(
        carry: tuple[Array, KVCache, Array], slices: tuple[BaseTree, LoraTree | None, jax.Array | None]
    ) -> tuple[tuple[Array, KVCache, Array], None]:
        x, cache, index = carry
        weights, adapter, local = slices

        def mix(q: Array, k: Array, v: Array) -> tuple[Array, KVCache]:
            start = (index, 0, slot, 0, 0)
            keys = jax.lax.dynamic_update_slice(cache.keys, k[None], start)
            values = jax.lax.dynamic_update_slice(cache.values, v[None], start)
            attended = attend(
                q,
                keys[index],
                values[index],
                by_layer(config, local, nearby, everywhere)[:, None],
                softcap=config.attention_softcap,
                scale=config.attention_scale,
            )
            return attended, KVCache(keys, values)

        x, cache = layer(x, weights, adapter, None, by_layer(config, local, *tables), mix)
        return (x, cache, index + 1), None

    start = (embed_tokens(config, base, lora, tokens[:, None], mesh), cache, jnp.zeros((), jnp.int32))
    (x, cache, _), _ = jax.lax.scan(step, start, (base["layers"], stacked(lora), local_flags(config)))
    return project_logits(config, base, lora, rms_norm(config, x[:, 0], base["norm"])), cache
