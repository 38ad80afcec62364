"""Reading a prompt once and then token by token: keys and values are kept, not computed again."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jora_tasks.spec import LoraConfig
from jora_tasks.trainer.attention import attend, attention
from jora_tasks.trainer.config import DecoderConfig
from jora_tasks.trainer.lora import LoraTree
from jora_tasks.trainer.model import (
    BaseTree,
    Block,
    embed_tokens,
    project_logits,
    rms_norm,
    rope_tables,
)


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
    tables = rope_tables(config, jnp.arange(tokens.shape[1]))
    room = ((0, 0), (0, extra), (0, 0), (0, 0))

    def step(x: Array, slices: tuple[BaseTree, LoraTree | None]) -> tuple[Array, tuple[Array, Array]]:
        return layer(
            x,
            *slices,
            None,
            tables,
            lambda q, k, v: (attention(q, k, v, mesh=mesh), (jnp.pad(k, room), jnp.pad(v, room))),
        )

    x, cache = jax.lax.scan(step, embed_tokens(base, tokens, mesh), (base["layers"], lora))
    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
    last = rms_norm(last, base["norm"]["weight"], config.rms_norm_eps)
    return project_logits(config, base, last), KVCache(*cache)


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
    slot = prompt_slots + step_index
    slots = jnp.arange(cache.keys.shape[2])
    allowed = (slots < lengths[:, None]) | ((slots >= prompt_slots) & (slots <= slot))
    tables = rope_tables(config, (lengths + step_index)[:, None])

    def step(
        carry: tuple[Array, KVCache, Array], slices: tuple[BaseTree, LoraTree | None]
    ) -> tuple[tuple[Array, KVCache, Array], None]:
        x, cache, index = carry

        def mix(q: Array, k: Array, v: Array) -> tuple[Array, KVCache]:
            start = (index, 0, slot, 0, 0)
            keys = jax.lax.dynamic_update_slice(cache.keys, k[None], start)
            values = jax.lax.dynamic_update_slice(cache.values, v[None], start)
            attended = attend(q, keys[index], values[index], allowed[:, None])
            return attended, KVCache(keys, values)

        x, cache = layer(x, *slices, None, tables, mix)
        return (x, cache, index + 1), None

    start = (embed_tokens(base, tokens[:, None], mesh), cache, jnp.zeros((), jnp.int32))
    (x, cache, _), _ = jax.lax.scan(step, start, (base["layers"], lora))
    x = rms_norm(x[:, 0], base["norm"]["weight"], config.rms_norm_eps)
    return project_logits(config, base, x), cache
