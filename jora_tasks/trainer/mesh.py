"""Devices in a grid, and which part of which array each one holds.

Arrays name their dimensions with logical axes ("embed", "heads", …). `AxisRules` says once which mesh
axis each of them is split over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jora_tasks.errors import InputError
from jora_tasks.spec import MeshConfig
from jora_tasks.trainer.config import DecoderConfig

MESH_AXES = ("data", "fsdp", "tensor", "sequence")
Axes = tuple[str | None, ...]


@dataclass(frozen=True)
class AxisRules:
    """Mesh axes of each logical axis; an axis that is not split maps to nothing.

    A weight's ``embed`` is split over fsdp and sequence (ZeRO-3, arXiv 1910.02054) and gathered where it is
    used; heads, ff and vocab are split over tensor (Megatron, arXiv 1909.08053). An adapter and its
    optimizer state are split over all of these by ``adapter``, their long side.

    A row of tokens is split over ``sequence``; between the products of a layer, where each token stands
    alone, over tensor as well (``tokens``; arXiv 2205.05198). The features of the residual stream,
    ``stream``, are whole.
    """

    batch: tuple[str, ...] = ("data", "fsdp")
    sequence: tuple[str, ...] = ("sequence",)
    tokens: tuple[str, ...] = ("sequence", "tensor")
    stream: tuple[str, ...] = ()
    embed: tuple[str, ...] = ("fsdp", "sequence")
    adapter: tuple[str, ...] = ("tensor", "fsdp", "sequence")
    heads: tuple[str, ...] = ("tensor",)
    kv_heads: tuple[str, ...] = ("tensor",)
    ff: tuple[str, ...] = ("tensor",)
    vocab: tuple[str, ...] = ("tensor",)
    rank: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()

    def spec(self, axes: Axes) -> PartitionSpec:
        """Logical axes → partition, as ("layers", "heads", "embed") → P(None, "tensor", "fsdp")."""
        parts = [getattr(self, axis) if axis else () for axis in axes]
        used = [name for part in parts for name in part]
        if len(used) != len(set(used)):
            raise ValueError(f"{axes} would be split twice over one mesh axis: {parts}")
        return PartitionSpec(*((part if len(part) > 1 else part[0]) if part else None for part in parts))


RULES = AxisRules()


def platform(mesh: Mesh | None) -> str:
    """What the arrays' devices are: "cpu", "gpu" or "tpu"; without a mesh those that JAX takes by default."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes data, fsdp, tensor and sequence over the given devices, by default all of them.

    Raises:
      InputError: if the mesh needs more devices than there are, or of several processes' not all.
    """
    available = list(jax.devices() if devices is None else devices)
    shape = tuple(getattr(config, axis) for axis in MESH_AXES)
    needed = math.prod(shape)
    if needed > len(available):
        asked = " x ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, shape, strict=True) if size > 1)
        raise InputError(
            f"training.mesh: {asked} needs {needed} devices, but {len(available)} "
            f"{available[0].platform} device(s) are there; make it smaller."
        )
    if needed < len(available) and jax.process_count() > 1:
        raise InputError(
            f"training.mesh takes {needed} devices, but all {len(available)} of the {jax.process_count()} "
            "processes must take part; make the product of its axes that number."
        )
    return Mesh(np.array(available[:needed]).reshape(shape), MESH_AXES)


def check_mesh(config: DecoderConfig, mesh: Mesh | None) -> None:
    """Refuse a mesh that would cut a head or leave devices unequal parts of a weight.

    Raises:
      InputError: naming the model's size and the mesh axis that does not divide it.
    """
    if mesh is None:
        return
    sizes = (
        ("num_attention_heads", config.num_attention_heads, "tensor"),
        ("num_key_value_heads", config.num_key_value_heads, "tensor"),
        ("intermediate_size", config.intermediate_size, "tensor"),
        ("vocab_size", config.vocab_size, "tensor"),
        ("hidden_size", config.hidden_size, "fsdp", "sequence"),
    )
    for name, size, *axes in sizes:
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            split = " x ".join(axis for axis in axes if mesh.shape[axis] > 1)
            raise InputError(
                f"training.mesh.{split} {parts} does not divide the model's {name} {size}; "
                f"use a divisor of {size}."
            )


def fits(mesh: Mesh, axes: Axes, shape: Sequence[int]) -> bool:
    """Whether every dimension splits into equal parts."""
    parts = [math.prod(mesh.shape[name] for name in getattr(RULES, axis)) if axis else 1 for axis in axes]
    return all(size % count == 0 for size, count in zip(shape, parts, strict=True))


def sharding(mesh: Mesh | None, axes: Axes, shape: Sequence[int] | None = None) -> NamedSharding | None:
    """Where an array of these logical axes lies; None without a mesh.

    With ``shape``, a dimension that does not split into equal parts stays whole.
    """
    if mesh is None:
        return None
    if shape is not None:
        axes = tuple(
            axis if fits(mesh, (axis,), (size,)) else None for axis, size in zip(axes, shape, strict=True)
        )
    return NamedSharding(mesh, RULES.spec(axes))


def batch_multiple(mesh: Mesh | None) -> int:
    """The number of rows must be a multiple of this."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def length_multiple(mesh: Mesh | None) -> int:
    """The number of tokens in a row must be a multiple of this."""
    return 1 if mesh is None else mesh.shape["tensor"] * mesh.shape["sequence"]


def constrain(x: jax.Array, mesh: Mesh | None, axes: Axes) -> jax.Array:
    """Tell the compiler where an intermediate array and its gradient lie; nothing without a mesh.

    A dimension that does not split into equal parts (the one token of a decoding step, say) stays whole.
    """
    place = sharding(mesh, axes, x.shape)
    return x if place is None else jax.lax.with_sharding_constraint(x, place)
