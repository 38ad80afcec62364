"""Frozen weights in 16, 8 or 4 bits: pure functions from a float matrix to a kept one, and back.

A quantised weight is a pytree of arrays with the float weight's leading axes, so that a scan over layers
slices it. Every leaf has a long last axis: accelerators pad short ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8, UInt16
from jaxtyping import Int8 as Int8Array

from jora_tasks.trainer.mesh import Axes

BLOCK = 64  # weights of a row that share one scale in NF4

# The levels of NormalFloat 4 (QLoRA, arXiv 2305.14314, appendix E): quantiles of a normal, scaled to [-1, 1].
NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BF16:
    """An f32 matrix whose values are exact in bf16: 2 bytes a weight.

    Kept as bits: XLA for CPUs would make slices of a bf16 stack, and so the whole stack, f32.
    """

    bits: UInt16[Array, "*L out in"]

    @classmethod
    def of(cls, weight: Float[Array, "*L out in"]) -> BF16:
        return cls(jax.lax.bitcast_convert_type(weight.astype(jnp.bfloat16), jnp.uint16))

    def axes(self, axes: Axes) -> BF16:
        """The leaf's logical axes, given the float weight's."""
        return replace(self, bits=axes)  # type: ignore[arg-type]

    def dequantise(self, dtype: Any = jnp.float32) -> Float[Array, "*L out in"]:
        return jax.lax.bitcast_convert_type(self.bits, jnp.bfloat16).astype(dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """Whole numbers from -127 to 127 times a scale for each output row: 1 byte a weight."""

    codes: Int8Array[Array, "*L out in"]
    scale: Float[Array, "*L out"]

    @classmethod
    def of(cls, weight: Float[Array, "*L out in"]) -> Int8:
        weight = weight.astype(jnp.float32)
        scale = jnp.max(jnp.abs(weight), axis=-1) / 127
        codes = jnp.round(weight / _above_zero(scale)[..., None])
        return cls(codes.astype(jnp.int8), scale)

    def axes(self, axes: Axes) -> Int8:
        """The leaves' logical axes, given the float weight's."""
        return replace(self, codes=axes, scale=axes[:-1])  # type: ignore[arg-type]

    def dequantise(self, dtype: Any = jnp.float32) -> Float[Array, "*L out in"]:
        return (self.codes.astype(jnp.float32) * self.scale[..., None]).astype(dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NF4:
    """NormalFloat 4 with double quantisation (QLoRA, arXiv 2305.14314): about 0.52 byte a weight.

    A row's weights are cut into blocks of 64. Each is a level times its block's largest magnitude, which
    is itself kept in 8 bits: ``least + step * maxima``, with a least and a step for each row. (QLoRA shares
    them among 256 blocks in the order of storage; a row's own are never cut by a mesh.)

    The matrix is kept transposed, and a byte holds two weights that lie half a block apart: scales are then
    spread and halves put together along the second last axis, which moves nothing within a vector.
    """

    codes: UInt8[Array, "*L pairs out"]  # level numbers: first half of a block low, second half high
    maxima: UInt8[Array, "*L blocks out"]
    step: Float[Array, "*L out"]
    least: Float[Array, "*L out"]
    columns: int = field(metadata={"static": True})  # in; the last block may hold fewer

    @classmethod
    def of(cls, weight: Float[Array, "*L out in"]) -> NF4:
        columns = weight.shape[-1]
        blocks = _blocks(jnp.swapaxes(weight.astype(jnp.float32), -1, -2))
        largest = jnp.max(jnp.abs(blocks), axis=-2)
        least, most = jnp.min(largest, axis=-2), jnp.max(largest, axis=-2)
        step = (most - least) / 255
        maxima = jnp.round((largest - least[..., None, :]) / _above_zero(step)[..., None, :])
        maxima = maxima.astype(jnp.uint8)
        # The levels nearest under the maxima as they will be read, not as they were.
        scales = _above_zero(_scales(maxima, step, least))
        codes = nearest_level(blocks / scales[..., None, :])
        low, high = jnp.split(codes, 2, axis=-2)
        codes = (low | high << 4).reshape(*step.shape[:-1], -1, step.shape[-1])
        return cls(codes, maxima, step, least, columns)

    def axes(self, axes: Axes) -> NF4:
        """The leaves' logical axes, given the float weight's."""
        *layers, out, into = axes
        row: Any = (*layers, out)
        matrix: Any = (*layers, into, out)
        return replace(self, codes=matrix, maxima=matrix, step=row, least=row)

    def transposed(self, dtype: Any = jnp.float32) -> Float[Array, "*L in out"]:
        """The weights as floats, as they are kept."""
        *layers, _, out = self.codes.shape
        pairs = self.codes.reshape(*layers, -1, 1, BLOCK // 2, out)
        codes = (pairs >> jnp.asarray([0, 4], jnp.uint8)[:, None, None]) & 15
        # Tied to the layer's step: levels spread into matrices would else be made before a loop over layers
        # and kept through it.
        table, step = jax.lax.optimization_barrier((jnp.asarray(NF4_LEVELS, jnp.float32), self.step))
        levels = jax.lax.platform_dependent(codes, table, tpu=_select_levels, default=_look_up_levels)
        scales = _scales(self.maxima, step, self.least)[..., None, None, :]
        # Made whole before its shape changes: the scales would else be spread into a matrix of their own.
        floats = jax.lax.optimization_barrier((levels * scales).astype(dtype))
        return floats.reshape(*layers, -1, out)[..., : self.columns, :]

    def dequantise(self, dtype: Any = jnp.float32) -> Float[Array, "*L out in"]:
        return jnp.swapaxes(self.transposed(dtype), -1, -2)


Quantised = BF16 | Int8 | NF4
FORMATS: dict[str, type[Int8] | type[NF4]] = {"int8": Int8, "nf4": NF4}  # that change the values


def base_in_words(base: Any) -> str:
    """How a base tree's weights are kept, for people: "float32", or "bfloat16, projections in NF4"."""
    formats = tuple(FORMATS.values())
    leaves = jax.tree.leaves(base, is_leaf=lambda leaf: isinstance(leaf, formats))
    kept = {type(leaf).__name__ for leaf in leaves if isinstance(leaf, formats)}
    return ", projections in ".join([str(base["embed"].dtype), *kept])


def nearest_level(values: Float[Array, "*T"]) -> UInt8[Array, "*T"]:
    """The number of the NF4 level nearest to each value; beyond ±1 the outermost."""
    levels = np.asarray(NF4_LEVELS, np.float32)
    between = (levels[1:] + levels[:-1]) / 2
    return sum(((values > each).astype(jnp.uint8) for each in between), jnp.zeros(values.shape, jnp.uint8))


def _look_up_levels(codes: UInt8[Array, "*T"], table: Float[Array, " levels"]) -> Float[Array, "*T"]:
    """The level of each number."""
    return table.at[codes].get(mode="promise_in_bounds")


def _select_levels(codes: UInt8[Array, "*T"], table: Float[Array, " levels"]) -> Float[Array, "*T"]:
    """The same by halving the table bit by bit: a look-up is slow on a TPU, and takes indices of 32 bits."""
    levels = list(table)
    for bit in range(4):
        is_set = (codes >> bit) & 1 == 1
        levels = [jnp.where(is_set, odd, even) for even, odd in zip(levels[::2], levels[1::2], strict=True)]
    return levels[0]


def _blocks(matrix: Float[Array, "*L in out"]) -> Float[Array, "*L blocks 64 out"]:
    """Cut the second last axis, the last block filled up with zeros."""
    *layers, columns, out = matrix.shape
    widths = [(0, 0)] * len(layers) + [(0, -columns % BLOCK), (0, 0)]
    return jnp.pad(matrix, widths).reshape(*layers, -1, BLOCK, out)


def _scales(
    maxima: UInt8[Array, "*L blocks out"], step: Float[Array, "*L out"], least: Float[Array, "*L out"]
) -> Float[Array, "*L blocks out"]:
    """The largest magnitude of each block, as far as 8 bits tell."""
    return maxima.astype(jnp.float32) * step[..., None, :] + least[..., None, :]


def _above_zero(scale: Array) -> Array:
    """A scale to divide by: where all is zero, any will do."""
    return jnp.where(scale > 0, scale, 1)
