"""Telling weights apart without moving them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jora_tasks.digests import digest_json
from jora_tasks.trainer.quantize import BF16


def fingerprint(tree: Any) -> str:
    """``sha256:<hex>`` that tells weights apart, computed where they lie.

    Each array enters by its path, shape, dtype and the sum of its bit patterns modulo 2**32, which
    does not depend on order or sharding. Whether bf16 values are kept as such or in f32 makes no difference.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, BF16))
    arrays = [leaf for _, leaf in leaves]
    plain = jax.eval_shape(lambda arrays: list(map(_plain, arrays)), arrays)
    sums = jax.jit(lambda arrays: [_sum_of_bits(_plain(array)) for array in arrays])(arrays)
    return digest_json(
        [
            [jax.tree_util.keystr(path), list(array.shape), str(array.dtype), int(total)]
            for (path, _), array, total in zip(leaves, plain, sums, strict=True)
        ]
    )


def _plain(leaf: jax.Array | BF16) -> jax.Array:
    return leaf.dequantise() if isinstance(leaf, BF16) else leaf


def _sum_of_bits(array: jax.Array) -> jax.Array:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    return jnp.sum(jax.lax.bitcast_convert_type(array, unsigned), dtype=jnp.uint32)
