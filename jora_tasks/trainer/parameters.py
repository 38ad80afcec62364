"""Every parameter of a decoder, declared once.

`Decoder` says of each its shape, type, logical axes, initialisation and the checkpoint's name for it. Layers
are stacked on a leading axis. Elsewhere parameters are plain nested dicts of arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from jora_tasks.trainer.config import DecoderConfig, Projection
from jora_tasks.trainer.mesh import Axes, sharding

BaseTree = dict[str, Any]


def _parameter(
    init: Callable[..., Array],
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    axes: Axes,
    name: str,
    rngs: nnx.Rngs,
) -> nnx.Param:
    return nnx.Param(init(rngs.params(), shape, dtype), axes=axes, checkpoint_name=name)


class Norm(nnx.Module):
    """Scale of an RMS norm, less the family's offset; stacked where every layer has one."""

    def __init__(
        self, config: DecoderConfig, name: str, dtype: jnp.dtype, rngs: nnx.Rngs, heads: bool = False
    ):
        stack = (config.num_hidden_layers,) if "{}" in name else ()
        size = config.head_dim if heads else config.hidden_size
        axes: Axes = ("layers",) * len(stack) + (None if heads else "stream",)
        init = nnx.initializers.constant(1 - config.norm_offset)
        self.weight = _parameter(init, (*stack, size), dtype, axes, f"{name}.weight", rngs)


class Linear(nnx.Module):
    """One projection of every layer: weight [L, out, in] as checkpoints store it, bias [L, out]."""

    def __init__(self, layers: int, projection: Projection, dtype: jnp.dtype, rngs: nnx.Rngs):
        shape = (layers, projection.out_features, projection.in_features)
        axes: Axes = ("layers", projection.out_axis, projection.in_axis)
        name = f"model.layers.{{}}.{projection.parent}.{projection.name}"
        init = nnx.initializers.normal(projection.in_features**-0.5)
        self.weight = _parameter(init, shape, dtype, axes, f"{name}.weight", rngs)
        if projection.bias:
            zeros = nnx.initializers.zeros
            self.bias = _parameter(zeros, shape[:2], dtype, axes[:2], f"{name}.bias", rngs)


class Layers(nnx.Module):
    """All layers, stacked."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        def norm(name: str, heads: bool = False) -> Norm:
            return Norm(config, f"model.layers.{{}}.{name}", dtype, rngs, heads)

        self.input_norm = norm("input_layernorm")
        if config.sandwich_norms:
            self.attention_out_norm = norm("post_attention_layernorm")
            self.mlp_norm = norm("pre_feedforward_layernorm")
            self.mlp_out_norm = norm("post_feedforward_layernorm")
        else:
            self.mlp_norm = norm("post_attention_layernorm")
        if config.qk_norm:
            self.q_norm = norm("self_attn.q_norm", heads=True)
            self.k_norm = norm("self_attn.k_norm", heads=True)
        for projection in config.projections.values():
            setattr(self, projection.name, Linear(config.num_hidden_layers, projection, dtype, rngs))


class Decoder(nnx.Module):
    """Every parameter of the model. Building one draws it at random; `describe` only describes it."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        table, axes = (config.vocab_size, config.hidden_size), ("vocab", "embed")
        init = nnx.initializers.normal(0.02)
        self.embed = _parameter(init, table, dtype, axes, "model.embed_tokens.weight", rngs)
        self.layers = Layers(config, dtype, rngs)
        self.norm = Norm(config, "model.norm", dtype, rngs)
        if not config.tie_word_embeddings:
            self.head = _parameter(init, table, dtype, axes, "lm_head.weight", rngs)


@dataclass(frozen=True)
class Parameter:
    """One parameter's shape, type and logical axes, and its checkpoint name ({} is the layer)."""

    shape: tuple[int, ...]
    dtype: jnp.dtype
    axes: Axes
    checkpoint_name: str


def describe(config: DecoderConfig, dtype: Any = jnp.float32) -> dict[tuple[str, ...], Parameter]:
    """Every parameter by its path in the base tree, without making any."""
    abstract = nnx.eval_shape(lambda: Decoder(config, jnp.dtype(dtype), nnx.Rngs(0)))
    described = {}
    for path, variable in nnx.to_flat_state(nnx.state(abstract, nnx.Param)):
        facts = variable.get_metadata()
        value = variable.get_value()
        described[tuple(map(str, path))] = Parameter(
            value.shape, value.dtype, facts["axes"], config.tensor_prefix + facts["checkpoint_name"]
        )
    return described


def init_base(
    config: DecoderConfig, key: jax.Array, dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> BaseTree:
    """A random base tree of the declared parameters, each made where it lies."""

    def make() -> BaseTree:
        _, state = nnx.split(Decoder(config, jnp.dtype(dtype), nnx.Rngs(key)), nnx.Param)
        return nnx.to_pure_dict(state)

    if mesh is None:
        return jax.jit(make)()
    places = unflatten({path: sharding(mesh, p.axes) for path, p in describe(config, dtype).items()})
    return jax.jit(make, out_shardings=places)()


def unflatten(flat: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    """{("a", "b"): x} → {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = value
    return tree
