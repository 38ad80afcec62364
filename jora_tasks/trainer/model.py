"""A Llama-family decoder: its parameters declared once, its forward pass as pure functions.

`Decoder` describes every parameter: shape, type, logical axes, initialisation and the checkpoint's name
for it. Layers are stacked on a leading axis. The forward pass takes plain nested dicts of arrays
(`nnx.split` once at load) and scans over the layers, so compile time does not grow with depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jora_tasks.spec import LoraConfig
from jora_tasks.trainer.attention import INPUTS, OUTPUT, attention
from jora_tasks.trainer.config import DecoderConfig, Projection
from jora_tasks.trainer.lora import LOW, LoraTree, linear
from jora_tasks.trainer.mesh import Axes, batch_multiple, constrain, sharding

BaseTree = dict[str, Any]

STREAM, WIDE = "stream_after_attention", "gate_and_up"
# What each remat policy keeps of a layer besides its input. Attention's output is as small as the input
# and costs most to make again; "none" keeps every product of weights, never norms, rotations or scores.
KEPT = {"full": (OUTPUT,), "none": (OUTPUT, INPUTS, LOW, STREAM, WIDE)}


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
    """Scale of one RMS norm, or of one in each layer."""

    def __init__(self, size: int, name: str, dtype: jnp.dtype, rngs: nnx.Rngs, layers: tuple[int, ...] = ()):
        axes: Axes = ("layers",) * len(layers) + ("stream",)
        self.weight = _parameter(nnx.initializers.ones, (*layers, size), dtype, axes, name, rngs)


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
        stack, name = (config.num_hidden_layers,), "model.layers.{}."
        self.input_norm = Norm(config.hidden_size, f"{name}input_layernorm.weight", dtype, rngs, stack)
        self.mlp_norm = Norm(config.hidden_size, f"{name}post_attention_layernorm.weight", dtype, rngs, stack)
        for projection in config.projections.values():
            setattr(self, projection.name, Linear(config.num_hidden_layers, projection, dtype, rngs))


class Decoder(nnx.Module):
    """Every parameter of the model. Building one draws it at random; `describe` only describes it."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        table, axes = (config.vocab_size, config.hidden_size), ("vocab", "embed")
        init = nnx.initializers.normal(0.02)
        self.embed = _parameter(init, table, dtype, axes, "model.embed_tokens.weight", rngs)
        self.layers = Layers(config, dtype, rngs)
        self.norm = Norm(config.hidden_size, "model.norm.weight", dtype, rngs)
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
            value.shape, value.dtype, facts["axes"], facts["checkpoint_name"]
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


def rope_tables(
    config: DecoderConfig, positions: Int[Array, "*P"]
) -> tuple[Float[Array, "*P half"], Float[Array, "*P half"]]:
    """Cosine and sine of each position's angles, f32, with the config's frequency scaling."""
    rope, half = config.rope, config.head_dim // 2
    exponents = np.arange(half, dtype=np.float32) * 2 / config.head_dim
    frequencies = (1.0 / np.float32(rope.theta) ** exponents).astype(np.float32)
    if rope.kind == "linear":
        frequencies = frequencies / np.float32(rope.factor)
    elif rope.kind == "llama3":
        waves = rope.original_max_positions * frequencies / (2 * math.pi)
        share = (waves - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        share = np.clip(share, 0.0, 1.0).astype(np.float32)
        frequencies = (1 - share) * frequencies / np.float32(rope.factor) + share * frequencies
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: Float[Array, "B S H d"], tables: tuple[Array, Array]) -> Float[Array, "B S H d"]:
    """Rotate pairs (i, i + d/2) of each head, in f32."""
    cos, sin = (table[..., None, :] for table in tables)
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)


def rms_norm(x: Float[Array, "*T D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "*T D"]:
    wide = x.astype(jnp.float32)
    scaled = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (scaled * weight.astype(jnp.float32)).astype(x.dtype)


@dataclass(frozen=True)
class Block:
    """One layer's forward pass over its slices of the stacked trees."""

    config: DecoderConfig
    lora_config: LoraConfig | None
    mesh: Mesh | None

    def project(
        self, name: str, x: Array, base: BaseTree, lora: LoraTree | None, key: jax.Array | None
    ) -> Array:
        adapter = lora.get(name) if lora is not None else None
        scale, dropout = (
            (self.lora_config.scale, self.lora_config.lora_dropout) if self.lora_config else (0.0, 0.0)
        )
        if key is not None:
            key = jax.random.fold_in(key, list(self.config.projections).index(name))
        y = linear(x, base[name]["weight"], adapter, scale, dropout, key)
        if "bias" in base[name]:
            y = y + base[name]["bias"]
        axis = {"embed": "stream"}.get(*[self.config.projections[name].out_axis] * 2)
        return constrain(y, self.mesh, ("batch", "sequence", axis))

    def __call__(
        self,
        x: Float[Array, "B S D"],
        base: BaseTree,
        lora: LoraTree | None,
        key: jax.Array | None,
        tables: tuple[Array, Array],
        mix: Callable[[Array, Array, Array], tuple[Array, Any]],
    ) -> tuple[Float[Array, "B S D"], Any]:
        """``mix`` attends: (q, k, v) → (attended values, whatever the caller collects)."""
        batch, length, _ = x.shape
        config = self.config
        project = partial(self.project, base=base, lora=lora, key=key)
        normed = rms_norm(x, base["input_norm"]["weight"], config.rms_norm_eps)
        q, k, v = (
            project(name, normed).reshape(batch, length, -1, config.head_dim)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        attended, collected = mix(_rotate(q, tables), _rotate(k, tables), v)
        x = checkpoint_name(x + project("o_proj", attended.reshape(batch, length, -1)), STREAM)
        normed = rms_norm(x, base["mlp_norm"]["weight"], config.rms_norm_eps)
        gate, up = (checkpoint_name(project(name, normed), WIDE) for name in ("gate_proj", "up_proj"))
        x = x + project("down_proj", _swiglu(gate, up))
        return constrain(x, self.mesh, ("batch", "sequence", "stream")), collected


def _swiglu(gate: Array, up: Array) -> Array:
    return (jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)


def embed_tokens(base: BaseTree, tokens: Array, mesh: Mesh | None) -> Array:
    return constrain(base["embed"][tokens], mesh, ("batch", "sequence", "stream"))


def hidden_states(
    config: DecoderConfig,
    lora_config: LoraConfig | None,
    base: BaseTree,
    lora: LoraTree | None,
    tokens: Int[Array, "B S"],
    segments: Int[Array, "B S"] | None = None,
    *,
    positions: Int[Array, "B S"] | None = None,
    dropout_key: jax.Array | None = None,
    remat: str = "full",
    mesh: Mesh | None = None,
) -> Float[Array, "B S D"]:
    """The last layer's normed output at every position.

    Args:
      config: the decoder.
      lora_config: scale and dropout of ``lora``; None without one.
      base: frozen weights, `describe`'s paths, in the type to compute in.
      lora: f32 adapter with stacked layers, or None.
      tokens: rows filled from the left, padding after them.
      segments: a number for each token, equal within one example of the row; None for one example a row.
        Padding then needs no segment of its own, since only later padding attends to it.
      positions: of each token in its example, where a row holds several; None counts from the row's start.
      dropout_key: applies the adapter's dropout, another mask in each layer and projection.
      remat: ``full`` recomputes each layer in the backward pass, ``none`` keeps its products; see `KEPT`.
      mesh: of the arrays; None on one device.
    """
    layer = Block(config, lora_config, mesh)
    tables = rope_tables(config, jnp.arange(tokens.shape[1]) if positions is None else positions)

    def step(x: Array, slices: tuple[BaseTree, LoraTree | None, jax.Array | None]) -> tuple[Array, None]:
        return layer(x, *slices, tables, lambda q, k, v: (attention(q, k, v, segments, mesh=mesh), None))

    policy = jax.checkpoint_policies.save_only_these_names(*KEPT[remat])
    step = jax.checkpoint(step, prevent_cse=False, policy=policy)
    keys = None if dropout_key is None else jax.random.split(dropout_key, config.num_hidden_layers)
    x, _ = jax.lax.scan(step, embed_tokens(base, tokens, mesh), (base["layers"], lora, keys))
    return rms_norm(x, base["norm"]["weight"], config.rms_norm_eps)


def head_weight(config: DecoderConfig, base: BaseTree) -> Float[Array, "V D"]:
    """The weight that turns hidden states into logits: the embedding where it is tied."""
    return base["embed"] if config.tie_word_embeddings else base["head"]


def project_logits(
    config: DecoderConfig, base: BaseTree, hidden: Float[Array, "*T D"]
) -> Float[Array, "*T V"]:
    """Hidden states → f32 logits."""
    return jnp.einsum("...d,vd->...v", hidden, head_weight(config, base), preferred_element_type=jnp.float32)


@partial(jax.jit, static_argnames=("config", "lora_config", "mesh"))
def _logits(
    config: DecoderConfig,
    lora_config: LoraConfig | None,
    base: BaseTree,
    lora: LoraTree | None,
    tokens: Array,
    mesh: Mesh | None,
) -> Array:
    hidden = hidden_states(config, lora_config, base, lora, tokens, remat="none", mesh=mesh)
    return project_logits(config, base, hidden)


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model: what it is, its frozen weights and, if any, its adapter.

    ``base`` and ``lora`` are plain nested dicts of arrays; ``lora`` is f32 and None without an adapter.
    """

    config: DecoderConfig
    base: BaseTree
    lora: LoraTree | None = None
    lora_config: LoraConfig | None = None
    mesh: Mesh | None = None

    def logits(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S V"]:
        """f32 logits of the next token at every position of every row, with the adapter if there is one."""
        rows = np.asarray(tokens, np.int32)
        if rows.ndim != 2:
            raise ValueError(f"tokens must be [B, S], rows of token ids, not of shape {list(rows.shape)}")
        spare = -len(rows) % batch_multiple(self.mesh)
        padded = np.pad(rows, ((0, spare), (0, 0)))
        out = _logits(self.config, self.lora_config, self.base, self.lora, padded, self.mesh)
        return out[: len(rows)]
