"""Reading a prompt once and then token after token: keys and values are kept, not computed again."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jora_tasks.spec import LoraConfig
from jora_tasks.trainer.attention import as_read, attend
from jora_tasks.trainer.config import DecoderConfig
from jora_tasks.trainer.layer import Block, attend_by_layer, by_layer, layer_tables, local_flags, rms_norm
from jora_tasks.trainer.lora import LoraTree, stacked
from jora_tasks.trainer.model import embed_tokens, project_logits
from jora_tasks.trainer.parameters import BaseTree


class KVCache(NamedTuple):
    """Keys [L, B, K, d, C] and values [L, B, K, C, d] of every layer, as attention's products read them."""

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

    def step(
        x: Array, slices: tuple[BaseTree, LoraTree | None, jax.Array | None]
    ) -> tuple[Array, tuple[Array, Array]]:
        weights, adapter, local = slices

        def mix(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
            attended = attend_by_layer(config, local, q, k, v, mesh=mesh)
            k, v = (jnp.pad(each, ((0, 0), (0, extra), (0, 0), (0, 0))) for each in (k, v))
            return attended, as_read(k, v)

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
    tokens: Int[Array, "B Q"],
    lengths: Int[Array, " B"],
    prompt_slots: int,
    step_index: Int[Array, ""],
    cache: KVCache,
    *,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "B Q V"], KVCache]:
    """Read Q more tokens in every row. Several cost little more than one, which reads all weights as well.

    The token of step t goes to slot ``prompt_slots + t`` in every row, whatever the row's length, so
    that the cache is written in one place; its position is ``lengths + t``.

    Args:
      tokens: the tokens that follow what was read.
      lengths: tokens in each prompt.
      prompt_slots: S of `prefill`.
      step_index: t of the first of them, from 0.
      cache: of `prefill` or the step before.

    Returns:
      Logits of the token after each, and the cache with these.
    """
    layer = Block(config, lora_config, mesh)
    steps = step_index + jnp.arange(tokens.shape[1])
    own, positions = (prompt_slots + steps)[:, None], lengths[:, None] + steps
    slots = jnp.arange(cache.keys.shape[4])
    generated = (slots >= prompt_slots) & (slots <= own)
    everywhere = (slots < lengths[:, None, None]) | generated
    behind = jnp.where(generated, own - slots, positions[:, :, None] - slots)
    nearby = everywhere if config.window is None else everywhere & (behind < config.window)
    room = cache.keys.shape[4] - prompt_slots
    tables = layer_tables(config, positions, (lengths + room)[:, None])

    def step(
        carry: tuple[Array, KVCache, Array], slices: tuple[BaseTree, LoraTree | None, jax.Array | None]
    ) -> tuple[tuple[Array, KVCache, Array], None]:
        x, cache, index = carry
        weights, adapter, local = slices

        def mix(q: Array, k: Array, v: Array) -> tuple[Array, KVCache]:
            new_keys, new_values = as_read(k, v)
            slot = prompt_slots + step_index
            keys = jax.lax.dynamic_update_slice(cache.keys, new_keys[None], (index, 0, 0, 0, slot))
            values = jax.lax.dynamic_update_slice(cache.values, new_values[None], (index, 0, 0, slot, 0))
            attended = attend(
                q,
                keys[index],
                values[index],
                by_layer(config, local, nearby, everywhere),
                softcap=config.attention_softcap,
                scale=config.attention_scale,
            )
            return attended, KVCache(keys, values)

        x, cache = layer(x, weights, adapter, None, by_layer(config, local, *tables), mix)
        return (x, cache, index + 1), None

    start = (embed_tokens(config, base, lora, tokens, mesh), cache, jnp.zeros((), jnp.int32))
    (x, cache, _), _ = jax.lax.scan(step, start, (base["layers"], stacked(lora), local_flags(config)))
    return project_logits(config, base, lora, rms_norm(config, x, base["norm"])), cache
