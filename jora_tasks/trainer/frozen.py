"""Products with frozen weights, which never get a gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def matmul(x: Float[Array, "*T in"], weight: Float[Array, "out in"]) -> Float[Array, "*T out"]:
    """x Wᵀ, added in f32, in x's type."""
    return contract(x, weight, x.ndim - 1, 1)


def matmul_transposed(x: Float[Array, "*T out"], weight: Float[Array, "out in"]) -> Float[Array, "*T in"]:
    """x W, added in f32, in x's type."""
    return contract(x, weight, x.ndim - 1, 0)


def row_squares(weight: Float[Array, "out in"]) -> Float[Array, " out"]:
    """Sum of squares of each row of W, in f32."""
    return jnp.sum(jnp.square(weight.astype(jnp.float32)), axis=-1)


def contract(left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
    """Contract one axis of each, adding in f32, result in left's type."""
    out = jax.lax.dot_general(
        left, right, (((left_axis,), (right_axis,)), ((), ())), preferred_element_type=jnp.float32
    )
    return out.astype(left.dtype)
