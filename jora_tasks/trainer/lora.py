"""Low-rank adaptation (arXiv 2106.09685): y = x Wᵀ + scale · drop(x) Aᵀ Bᵀ, with W frozen."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jora_tasks.spec import LoraConfig
from jora_tasks.trainer.config import DecoderConfig, Projection
from jora_tasks.trainer.frozen import contract, matmul, matmul_transposed
from jora_tasks.trainer.mesh import Axes, sharding

LOW = "lora_low"  # the name under which a remat policy may keep x Aᵀ

LoraTree = dict[str, dict[str, jax.Array]]


def lora_axes(projection: Projection) -> dict[str, Axes]:
    """Logical axes of the stacked A [L, r, in] and B [L, r, out] of one projection."""
    return {"a": ("layers", "rank", projection.in_axis), "b": ("layers", "rank", projection.out_axis)}


def lora_shapes(config: DecoderConfig, lora: LoraConfig) -> dict[str, dict[str, tuple[int, int, int]]]:
    """Shapes of the stacked A and B of every adapted projection."""
    layers, rank = config.num_hidden_layers, lora.r
    chosen = (config.projections[name] for name in lora.targets)
    return {p.name: {"a": (layers, rank, p.in_features), "b": (layers, rank, p.out_features)} for p in chosen}


def init_lora(config: DecoderConfig, lora: LoraConfig, key: jax.Array, mesh: Mesh | None = None) -> LoraTree:
    """A fresh adapter as PEFT starts it: A uniform in ±1/sqrt(in), B zero, so that it changes nothing.

    Args:
      config: the decoder adapted.
      lora: rank and targets.
      key: decides A; the values do not depend on the mesh.
      mesh: where the arrays go.

    Returns:
      {projection: {"a": f32 [L, r, in], "b": f32 [L, r, out]}}: B
      as PEFT has it, transposed, so that both have the long side last and gradients need no transposing.
    """
    shapes = lora_shapes(config, lora)
    places = {
        name: {part: sharding(mesh, axes) for part, axes in lora_axes(config.projections[name]).items()}
        for name in shapes
    }

    def make() -> LoraTree:
        tree = {}
        for name, key_of in zip(shapes, jax.random.split(key, len(shapes)), strict=True):
            bound = config.projections[name].in_features ** -0.5
            a = jax.random.uniform(key_of, shapes[name]["a"], jnp.float32, -bound, bound)
            tree[name] = {"a": a, "b": jnp.zeros(shapes[name]["b"], jnp.float32)}
        return tree

    return jax.jit(make, out_shardings=places if mesh is not None else None)()


def linear(
    x: Float[Array, "*T in"],
    weight: Float[Array, "out in"],
    adapter: dict[str, jax.Array] | None,
    scale: float,
    dropout: float = 0.0,
    key: jax.Array | None = None,
) -> Float[Array, "*T out"]:
    """x through a frozen weight and, if given, its adapter.

    Args:
      x: inputs; their type is the type computed in.
      weight: frozen, stored as in the checkpoint. It never gets a gradient.
      adapter: f32 masters {"a": [r, in], "b": [r, out]}, cast to x's type where they are used.
      scale: factor on the adapter's part.
      dropout: share of the adapter's inputs dropped, where a key is given.
      key: decides which inputs are dropped.
    """
    if adapter is None:
        return matmul(x, weight)
    if key is None:
        dropout = 0.0
    return _lora_linear(scale, dropout, x, weight, adapter["a"], adapter["b"], key)


def _dropped(x: Array, dropout: float, key: jax.Array | None) -> Array:
    if key is None or dropout == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - dropout, x.shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - dropout, x.dtype), jnp.zeros((), x.dtype))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _lora_linear(
    scale: float, dropout: float, x: Array, weight: Array, a: Array, b: Array, key: jax.Array | None
) -> Array:
    return _lora_forward(scale, dropout, x, weight, a, b, key)[0]


def _lora_forward(
    scale: float, dropout: float, x: Array, weight: Array, a: Array, b: Array, key: jax.Array | None
) -> tuple[Array, tuple[Array | None, ...]]:
    last = x.ndim - 1
    low = contract(_dropped(x, dropout, key), a.astype(x.dtype), last, 1) * jnp.asarray(scale, x.dtype)
    low = checkpoint_name(low, LOW)
    y = matmul(x, weight) + contract(low, b.astype(x.dtype), last, 0)
    return y, (x, weight, a, b, key, low)


def _lora_backward(
    scale: float, dropout: float, saved: tuple[Any, ...], dy: Array
) -> tuple[Array, None, Array, Array, None]:
    """Gradients whose products over tokens transpose the rank-sized side only.

    Autodiff would put the large operand of dB and dA on the side that XLA has to copy transposed.
    """
    x, weight, a, b, key, low = saved
    last, tokens = dy.ndim - 1, tuple(range(dy.ndim - 1))
    dlow = contract(dy, b.astype(dy.dtype), last, 1) * jnp.asarray(scale, dy.dtype)
    dx_adapter = _dropped(contract(dlow, a.astype(dy.dtype), last, 0), dropout, key)
    dx = matmul_transposed(dy, weight) + dx_adapter
    over_tokens = ((tokens, tokens), ((), ()))
    db = jax.lax.dot_general(low, dy, over_tokens, preferred_element_type=jnp.float32)
    da = jax.lax.dot_general(dlow, _dropped(x, dropout, key), over_tokens, preferred_element_type=jnp.float32)
    return dx, None, da, db, None


_lora_linear.defvjp(_lora_forward, _lora_backward)
