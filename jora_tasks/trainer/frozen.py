"""Products with frozen weights, plain or kept in fewer bits, which never get a gradient.

A matrix in 8 or 4 bits is made float where it is used and nowhere else.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jora_tasks.trainer.quantize import BF16, NF4, Int8, Quantised

Weight = Float[Array, "out in"] | Quantised
Q = TypeVar("Q", bound=Quantised)


@jax.custom_vjp
def matmul(x: Float[Array, "*T in"], weight: Weight) -> Float[Array, "*T out"]:
    """x Wᵀ, in x's type."""
    last = x.ndim - 1
    if isinstance(weight, BF16):
        return _contract_bf16(x, weight, last, 1)
    if isinstance(weight, Int8):  # whole numbers up to 127 are exact in bf16: scaling the sum rounds less
        codes = weight.codes.astype(x.dtype)
        sums = jnp.matmul(x, codes.T, preferred_element_type=jnp.float32)
        return (sums * weight.scale).astype(x.dtype)
    if isinstance(weight, NF4):
        x, weight = _together(x, weight)
        return contract(x, weight.transposed(x.dtype), last, 0)
    return contract(x, weight, last, 1)


def matmul_transposed(dy: Float[Array, "*T out"], weight: Weight) -> Float[Array, "*T in"]:
    """dy W, in dy's type."""
    last = dy.ndim - 1
    if isinstance(weight, BF16):
        return _contract_bf16(dy, weight, last, 0)
    if isinstance(weight, Quantised):
        dy, weight = _together(dy, weight)
    if isinstance(weight, Int8):
        return contract((dy * weight.scale).astype(dy.dtype), weight.codes.astype(dy.dtype), last, 0)
    if isinstance(weight, NF4):
        return contract(dy, weight.transposed(dy.dtype), last, 1)
    return contract(dy, weight, last, 0)


def _contract_bf16(x: Array, weight: BF16, x_axis: int, weight_axis: int) -> Array:
    """`contract` of f32 with bf16 values, on units that multiply bf16 and add in f32.

    x enters as the sum of two bf16 numbers, which hold 16 of its 24 bits (the idea of arXiv 1904.06376):
    twice the products of bf16, and errors as small as those of adding in f32.
    """
    values = weight.dequantise(jnp.bfloat16)
    dimensions = (((x_axis,), (weight_axis,)), ((), ()))

    def product(part: Array) -> Array:
        part = part.astype(jnp.bfloat16)
        return jax.lax.dot_general(part, values, dimensions, preferred_element_type=jnp.float32)

    high = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)  # which no compiler takes back
    return product(high) + product(x - high)


def _together(x: Array, weight: Q) -> tuple[Array, Q]:
    """Both, as of when both are there.

    So a float matrix is made when its input has come, not before, and for the backward pass anew: else the
    compiler would keep that of the forward pass.
    """
    return jax.lax.optimization_barrier((x, weight))


def row_squares(weight: Weight) -> Float[Array, " out"]:
    """Sum of squares of each row of W, in f32."""
    floats = weight.dequantise() if isinstance(weight, Quantised) else weight.astype(jnp.float32)
    return jnp.sum(jnp.square(floats), axis=-1)


def contract(left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
    """Contract one axis of each, result in left's type.

    Every backend adds bf16 products in f32 and rounds once. Asking for f32 and rounding afterwards would
    give the same on one device, but send f32 sums between devices.
    """
    return jax.lax.dot_general(left, right, (((left_axis,), (right_axis,)), ((), ())))


def _forward(x: Array, weight: Weight) -> tuple[Array, Weight]:
    return matmul(x, weight), weight


def _backward(weight: Weight, dy: Array) -> tuple[Array, None]:
    return matmul_transposed(dy, weight), None


matmul.defvjp(_forward, _backward)
