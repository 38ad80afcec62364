"""Low-rank adaptation (arXiv 2106.09685): y = x Wᵀ + scale · drop(x) Aᵀ Bᵀ, with W frozen.

DoRA (arXiv 2402.09353) gives each row of W + scale · B A the trained length m instead of its own.
Embedding and head can be trained whole beside either.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jora_tasks.spec import LoraConfig
from jora_tasks.trainer.config import DecoderConfig
from jora_tasks.trainer.frozen import contract, matmul, matmul_transposed, row_squares
from jora_tasks.trainer.mesh import Axes, sharding
from jora_tasks.trainer.targets import EMBEDDING, SAVED, lora_targets

LOW = "lora_low"  # the name under which a remat policy may keep x Aᵀ
DORA = "dora_factor"  # and that of DoRA's factors, [out] for each weight

LoraTree = dict[str, dict[str, jax.Array]]


def lora_axes(config: DecoderConfig, lora: LoraConfig) -> dict[str, dict[str, Axes]]:
    """Logical axes of every array of an adapter; the tree of `lora_shapes`."""
    axes: dict[str, dict[str, Axes]] = {}
    for name in lora_targets(config, lora):
        axes[name] = {"a": ("layers", "rank", "adapter"), "b": ("layers", "rank", "adapter")}
        if lora.use_dora:
            axes[name]["m"] = ("layers", "adapter")
    return axes | {name: {"weight": ("vocab", "embed")} for name in lora.modules_to_save}


def lora_shapes(config: DecoderConfig, lora: LoraConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of every array of an adapter, all f32.

    Returns:
      {projection: {"a": [L, r, in], "b": [L, r, out]}}, with DoRA "m": [L, out] too, and {"embed_tokens"
      or "lm_head": {"weight": [V, D]}} where those are trained whole. B is PEFT's transposed, so that both
      have the long side last and no gradient needs transposing.
    """
    layers = config.num_hidden_layers
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for name in lora_targets(config, lora):
        one = config.projections[name]
        shapes[name] = {"a": (layers, lora.r, one.in_features), "b": (layers, lora.r, one.out_features)}
        if lora.use_dora:
            shapes[name]["m"] = (layers, one.out_features)
    return shapes | {
        name: {"weight": (config.vocab_size, config.hidden_size)} for name in lora.modules_to_save
    }


def init_lora(
    config: DecoderConfig,
    lora: LoraConfig,
    key: jax.Array,
    mesh: Mesh | None = None,
    base: Any = None,
) -> LoraTree:
    """A fresh adapter as PEFT starts it, which changes nothing.

    A is uniform in ±1/sqrt(in) and B zero; DoRA's m is the lengths of the base's rows. In layers that are
    not adapted A, B and m are zero, and no update changes that: each gradient is exactly zero there.

    Args:
      config: the decoder adapted.
      lora: rank, targets and the rest.
      key: decides A; the values do not depend on the mesh.
      mesh: where the arrays go.
      base: the frozen weights; needed for DoRA and for modules that are trained whole.

    Returns:
      The f32 tree of `lora_shapes`.
    """
    targets, shapes = lora_targets(config, lora), lora_shapes(config, lora)
    if base is None and (lora.use_dora or lora.modules_to_save):
        raise ValueError("DoRA and modules_to_save start from the base's weights; give base")

    def make(base: Any) -> LoraTree:
        tree: LoraTree = {}
        for (name, layers), key_of in zip(targets.items(), jax.random.split(key, len(targets)), strict=True):
            adapted = jnp.zeros(config.num_hidden_layers, bool).at[jnp.array(layers)].set(True)
            bound = config.projections[name].in_features ** -0.5
            a = jax.random.uniform(key_of, shapes[name]["a"], jnp.float32, -bound, bound)
            a = jnp.where(adapted[:, None, None], a, 0)
            tree[name] = {"a": a, "b": jnp.zeros(shapes[name]["b"], jnp.float32)}
            if lora.use_dora:
                squares = jax.lax.map(row_squares, base["layers"][name]["weight"])
                tree[name]["m"] = jnp.where(adapted[:, None], jnp.sqrt(squares), 0)
        for name in lora.modules_to_save:
            tied = name == EMBEDDING or "head" not in base
            tree[name] = {"weight": base["embed" if tied else "head"].astype(jnp.float32)}
        return tree

    places = {
        name: {part: sharding(mesh, axes, shapes[name][part]) for part, axes in parts.items()}
        for name, parts in lora_axes(config, lora).items()
    }
    needed = base if lora.use_dora or lora.modules_to_save else None
    return jax.jit(make, out_shardings=places if mesh is not None else None)(needed)


def stacked(lora: LoraTree | None) -> LoraTree | None:
    """The part of an adapter that has a slice for each layer."""
    return None if lora is None else {name: parts for name, parts in lora.items() if name not in SAVED}


def trained_whole(lora: LoraTree | None, name: str) -> Float[Array, "V D"] | None:
    """The adapter's own embedding or head, f32, or None where the base's is used."""
    return lora[name]["weight"] if lora is not None and name in lora else None


def linear(
    x: Float[Array, "*T in"],
    weight: Float[Array, "out in"],
    adapter: dict[str, jax.Array] | None,
    scale: float,
    dropout: float = 0.0,
    key: jax.Array | None = None,
) -> Float[Array, "*T out"]:
    """x through a frozen weight and, if given, its adapter.

    With DoRA and dropout, dropped inputs meet the frozen weight too, as in PEFT: with d = drop(x) it is
    x Wᵀ - d Wᵀ + f · (d Wᵀ + scale · d Aᵀ Bᵀ).

    Args:
      x: inputs; their type is the type computed in.
      weight: frozen, stored as in the checkpoint. It never gets a gradient.
      adapter: f32 masters {"a": [r, in], "b": [r, out]} and with DoRA "m": [out], cast to x's type where
        they are used.
      scale: factor on the adapter's part.
      dropout: share of the adapter's inputs dropped, where a key is given.
      key: decides which inputs are dropped.
    """
    if adapter is None:
        return matmul(x, weight)
    if key is None:
        dropout = 0.0
    a, b = adapter["a"], adapter["b"]
    if "m" not in adapter:
        return _lora_linear(scale, dropout, x, weight, a, b, key)
    factor = checkpoint_name(dora_factor(weight, adapter, scale, x.dtype), DORA).astype(x.dtype)
    if dropout == 0.0:
        return _lora_linear(scale, 0.0, x, weight, a, b, None) * factor
    dropped = _dropped(x, dropout, key)
    return matmul(x - dropped, weight) + _lora_linear(scale, 0.0, dropped, weight, a, b, None) * factor


def dora_factor(
    weight: Float[Array, "out in"], adapter: dict[str, jax.Array], scale: float, dtype: Any = jnp.float32
) -> Float[Array, " out"]:
    """DoRA's factor on each output: trained length over the length of the row of W + scale · B A.

    The adapted weight is never made: with rows w and b, its squared length is w·w + 2 scale b·(A w) +
    scale² b·(A Aᵀ b). The length is a constant to the gradient, as in the paper's section 4.3. Rows with
    m = 0, those of layers that are not adapted, have factor 1 and no gradient.

    Args:
      weight: frozen.
      adapter: {"a": [r, in], "b": [r, out], "m": [out]}.
      scale: factor on B A.
      dtype: of the product A Wᵀ, the one that reads the weight; all else is f32.
    """
    a, b = jax.lax.stop_gradient((adapter["a"], adapter["b"]))
    crossed = matmul(a.astype(dtype), weight).astype(jnp.float32)
    squares = row_squares(weight) + jnp.sum(b * (2 * scale * crossed + scale**2 * (a @ a.T) @ b), axis=0)
    squares = jax.lax.stop_gradient(squares)
    adapted = (adapter["m"] != 0) & (squares > 0)
    return jnp.where(adapted, adapter["m"] / jnp.sqrt(jnp.where(adapted, squares, 1)), 1)


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
