"""Rows of an embedding table whose vocabulary and features are split over devices."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jora_tasks.trainer.mesh import RULES, fits

TABLE, TOKENS, STREAM = ("vocab", "embed"), ("batch", "sequence"), ("batch", "tokens", "stream")


def embed(table: Float[Array, "V D"], tokens: Int[Array, "B S"], mesh: Mesh | None) -> Float[Array, "B S D"]:
    """The tokens' rows.

    Over a mesh no device ever holds the whole table: each looks every token up in its own part, and the
    parts of a row travel to the device that holds the token.
    """
    if mesh is None or not (fits(mesh, ("batch", "tokens"), tokens.shape) and fits(mesh, TABLE, table.shape)):
        return table[tokens]

    def local(table: Array, tokens: Array) -> Array:
        for axis, name in ((0, "fsdp"), (1, "sequence")):
            tokens = jax.lax.all_gather(tokens, name, axis=axis, tiled=True)
        row = tokens - jax.lax.axis_index("tensor") * table.shape[0]
        known = (row >= 0) & (row < table.shape[0])
        rows = jnp.where(known[..., None], table[jnp.where(known, row, 0)], 0)
        exchange = partial(jax.lax.all_to_all, concat_axis=2, tiled=True)
        rows = exchange(exchange(rows, "sequence", split_axis=1), "fsdp", split_axis=0)
        return jax.lax.psum_scatter(rows, "tensor", scatter_dimension=1, tiled=True)

    specs = (RULES.spec(TABLE), RULES.spec(TOKENS))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=RULES.spec(STREAM), check_vma=False)(
        table, tokens
    )
