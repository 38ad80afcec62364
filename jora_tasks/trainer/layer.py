"""One layer of a decoder: norms, rotary embedding, attention near or far, and the MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jora_tasks.spec import LoraConfig
from jora_tasks.trainer.attention import LONG, attention
from jora_tasks.trainer.config import DecoderConfig
from jora_tasks.trainer.lora import LoraTree, linear
from jora_tasks.trainer.mesh import Axes, constrain
from jora_tasks.trainer.parameters import BaseTree
from jora_tasks.trainer.quantize import Quantised
from jora_tasks.trainer.rope import RopeConfig

INPUT, STREAM, WIDE = "layer_input", "stream_after_attention", "gate_and_up"
UNNORMED = "before_inner_norm"
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}

CHUNK = 2048  # tokens on which a layer's products work at once, where a device has more than `LONG` of a row

Tables = tuple[Array, ...]  # cosine and sine
Project = Callable[[str, Array], Array]  # a projection's name and its input → its output
T = TypeVar("T")


def rope_tables(
    rope: RopeConfig, head_dim: int, positions: Int[Array, "*P"], length: Int[Array, "*#P"] | int = 0
) -> Tables:
    """Cosine and sine of each position's angles, f32 [*P, half].

    Args:
      rope: the frequencies.
      head_dim: size of a head.
      positions: of tokens in their texts.
      length: of the text that each token is in, which some frequencies depend on.
    """
    frequencies = jnp.asarray(rope.frequencies(head_dim))
    if rope.long_factors:
        long = jnp.asarray(length)[..., None] > rope.original_max_positions
        frequencies = jnp.where(long, rope.frequencies(head_dim, long=True), frequencies)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor


def layer_tables(config: DecoderConfig, positions: Array, length: Array | int) -> tuple[Tables, Tables]:
    """`rope_tables` of layers with a window, and of the others."""
    tables = rope_tables(config.rope, config.head_dim, positions, length)
    if config.local_rope == config.rope:
        return tables, tables
    return rope_tables(config.local_rope, config.head_dim, positions, length), tables


def text_lengths(positions: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """How long the text of each token is, where positions count up from 0 in every text of a row."""
    slots = jnp.arange(positions.shape[1])
    last = jnp.pad(positions[:, 1:] == 0, ((0, 0), (0, 1)), constant_values=True)
    ends = jax.lax.cummin(jnp.where(last, slots, positions.shape[1]), axis=1, reverse=True)
    return jnp.take_along_axis(positions, ends, axis=1) + 1


def _rotate(x: Float[Array, "B S H d"], tables: Tables) -> Float[Array, "B S H d"]:
    """Rotate pairs (i, i + n/2) of the first n numbers of each head, in f32."""
    cos, sin = (table[..., None, :] for table in tables)
    half = cos.shape[-1]
    low, high, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin, rest], axis=-1).astype(x.dtype)


def rms_norm(config: DecoderConfig, x: Float[Array, "*T D"], norm: BaseTree) -> Float[Array, "*T D"]:
    """x over its root mean square, times the norm's scale, in f32."""
    wide = x.astype(jnp.float32)
    scaled = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.rms_norm_eps)
    return (scaled * (norm["weight"].astype(jnp.float32) + config.norm_offset)).astype(x.dtype)


def local_flags(config: DecoderConfig) -> Bool[Array, " L"] | None:
    """Whether each layer attends within the window only; None where all layers are alike."""
    return jnp.asarray(config.local_layers) if len(set(config.local_layers)) > 1 else None


def by_layer(config: DecoderConfig, local: Bool[Array, ""] | None, of_local: T, of_global: T) -> T:
    """The one of two trees of arrays that fits this layer, whose flag is ``local``."""
    if local is None:
        return of_local if any(config.local_layers) else of_global
    if of_local is of_global:
        return of_global
    return jax.tree.map(partial(jnp.where, local), of_local, of_global)


def attend_by_layer(
    config: DecoderConfig,
    local: Bool[Array, ""] | None,
    q: Array,
    k: Array,
    v: Array,
    segments: Int[Array, "B S"] | None = None,
    mesh: Mesh | None = None,
) -> Array:
    """Attention as this layer has it. A local layer computes no score of blocks outside its window."""
    everywhere = partial(attention, softcap=config.attention_softcap, scale=config.attention_scale, mesh=mesh)
    if config.window is None or config.window >= q.shape[1] or not any(config.local_layers):
        return everywhere(q, k, v, segments)
    nearby = partial(everywhere, window=config.window)
    if local is None:
        return nearby(q, k, v, segments)
    return jax.lax.cond(local, nearby, everywhere, q, k, v, segments)


def over_tokens(
    function: Callable[..., Any], mesh: Mesh | None, key: jax.Array | None, *arrays: Array
) -> Any:
    """A function of each token alone, over the tokens of long rows a chunk at a time.

    Only one chunk's products are alive, forward and backward. A chunk takes equal parts of every device's
    tokens, so that it is spread over the devices as the whole row is.

    Args:
      function: ``(key, *arrays) -> arrays``, all [B, S, ...].
      key: of what it draws, or None.
    """
    batch, length = arrays[0].shape[:2]
    parts, chunks = _parts(mesh), _chunks(length, mesh)
    if chunks == 1:
        return function(key, *arrays)

    def split(x: Array) -> Array:
        x = x.reshape(batch, parts, chunks, -1, *x.shape[2:])
        return jnp.moveaxis(x, 2, 0).reshape(chunks, batch, -1, *x.shape[4:])

    def join(x: Array) -> Array:
        x = x.reshape(chunks, batch, parts, -1, *x.shape[3:])
        return jnp.moveaxis(x, 0, 2).reshape(batch, length, *x.shape[4:])

    def one(_: None, item: tuple[Array, ...]) -> tuple[None, Any]:
        index, *parts = item
        own = None if key is None else jax.random.fold_in(key, index)
        return None, function(own, *parts)

    _, out = jax.lax.scan(
        jax.checkpoint(one, prevent_cse=False), None, (jnp.arange(chunks), *map(split, arrays))
    )
    return jax.tree.map(join, out)


def in_chunks(length: int, mesh: Mesh | None) -> bool:
    """Whether rows of this length are worked on in chunks."""
    return _chunks(length, mesh) > 1


def _parts(mesh: Mesh | None) -> int:
    return 1 if mesh is None else mesh.shape["sequence"] * mesh.shape["tensor"]


def _chunks(length: int, mesh: Mesh | None) -> int:
    """How many equal chunks give each at most `CHUNK` tokens of a device's part; one if that is short."""
    tokens = length // (1 if mesh is None else mesh.shape["sequence"])
    own, rest = divmod(length, _parts(mesh))
    if tokens <= LONG or rest:
        return 1
    return next(count for count in range(-(-tokens // CHUNK), own + 1) if own % count == 0)


def _whole(axis: str) -> str | None:
    """The axis of a weight where it is used: what is split to save memory alone is gathered."""
    return None if axis == "embed" else axis


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathered(mesh: Mesh | None, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """All tokens on every device that projects them.

    The gradients that come back are summed up where each token lies. Autodiff would want the sum of each
    projection's on every device, which sends twice as much.
    """
    x = constrain(x, mesh, ("batch", "tokens", "stream"))
    return constrain(x, mesh, ("batch", "sequence", "stream"))


def _gathered_backward(mesh: Mesh | None, _: None, dx: Array) -> tuple[Array]:
    return (constrain(dx, mesh, ("batch", "tokens", "stream")),)


_gathered.defvjp(lambda mesh, x: (_gathered(mesh, x), None), _gathered_backward)


@dataclass(frozen=True)
class Block:
    """One layer's forward pass over its slices of the stacked trees.

    Attributes:
      chunked: long rows go through it in chunks, whose products the backward pass computes again.
    """

    config: DecoderConfig
    lora_config: LoraConfig | None
    mesh: Mesh | None
    chunked: bool = True

    def project(
        self, name: str, x: Array, base: BaseTree, lora: LoraTree | None, key: jax.Array | None
    ) -> Array:
        adapter = lora.get(name) if lora is not None else None
        scale, dropout = (
            (self.lora_config.scale, self.lora_config.lora_dropout) if self.lora_config else (0.0, 0.0)
        )
        if key is not None:
            key = jax.random.fold_in(key, list(self.config.projections).index(name))
        projection = self.config.projections[name]
        used = (_whole(projection.out_axis), _whole(projection.in_axis))
        weight = base[name]["weight"]
        axes = weight.axes(used) if isinstance(weight, Quantised) else used
        weight = jax.tree.map(lambda leaf, axes: constrain(leaf, self.mesh, axes), weight, axes)
        if adapter is not None:
            sides: dict[str, Axes] = {"a": (None, used[1]), "b": (None, used[0]), "m": used[:1]}
            adapter = {
                part: constrain(
                    constrain(leaf, self.mesh, (None, "adapter")[-leaf.ndim :]), self.mesh, sides[part]
                )
                for part, leaf in adapter.items()
            }
        y = linear(x, weight, adapter, scale, dropout, key)
        if "bias" in base[name]:
            y = y + base[name]["bias"]
        split = ("tokens", "stream") if projection.out_axis == "embed" else ("sequence", projection.out_axis)
        return constrain(y, self.mesh, ("batch", *split))

    def __call__(
        self,
        x: Float[Array, "B S D"],
        base: BaseTree,
        lora: LoraTree | None,
        key: jax.Array | None,
        tables: Tables,
        mix: Callable[[Array, Array, Array], tuple[Array, Any]],
    ) -> tuple[Float[Array, "B S D"], Any]:
        """``mix`` attends: (q, k, v) → (attended values, whatever the caller collects)."""

        def project(key: jax.Array | None) -> Callable[[str, Array], Array]:
            return partial(self.project, base=base, lora=lora, key=key)

        def before(key: jax.Array | None, x: Array, *tables: Array) -> list[Array]:
            return self.before_attention(x, tables, base, project(key))

        def after(key: jax.Array | None, x: Array, attended: Array) -> Array:
            return self.after_attention(x, attended, base, project(key))

        tables = tuple(jnp.broadcast_to(table, (*x.shape[:2], table.shape[-1])) for table in tables)

        def over(function: Callable[..., Any], *arrays: Array) -> Any:
            return over_tokens(function, self.mesh, key, *arrays) if self.chunked else function(key, *arrays)

        q, k, v = over(before, x, *tables)
        attended, collected = mix(q, k, v)
        return over(after, x, attended), collected

    def before_attention(
        self, x: Float[Array, "B S D"], tables: tuple[Array, ...], base: BaseTree, project: Project
    ) -> list[Array]:
        """Queries, keys and values, [B, S, heads, d], rotated."""
        config = self.config
        q, k, v = self.attention_inputs(self.normed(x, base["input_norm"]), project)
        if config.qk_norm:
            q, k = self.inner_norm(q, base["q_norm"]), self.inner_norm(k, base["k_norm"])
        return [_rotate(q, tables), _rotate(k, tables), v]

    def after_attention(
        self, x: Float[Array, "B S D"], attended: Float[Array, "B S H d"], base: BaseTree, project: Project
    ) -> Float[Array, "B S D"]:
        """The residual stream after both halves of the layer."""
        config = self.config
        out = project("o_proj", attended.reshape(*x.shape[:2], -1))
        if config.sandwich_norms:
            out = self.inner_norm(out, base["attention_out_norm"])
        x = checkpoint_name(x + out, STREAM)
        out = project("down_proj", self.gated(self.normed(x, base["mlp_norm"]), project))
        if config.sandwich_norms:
            out = self.inner_norm(out, base["mlp_out_norm"])
        return constrain(x + out, self.mesh, ("batch", "tokens", "stream"))

    def normed(self, x: Float[Array, "B S D"], norm: BaseTree) -> Float[Array, "B S D"]:
        """The norm of each token where it lies, then all tokens on every device that projects them."""
        return _gathered(self.mesh, rms_norm(self.config, x, norm))

    def inner_norm(self, x: Array, norm: BaseTree) -> Array:
        return rms_norm(self.config, checkpoint_name(x, UNNORMED), norm)

    def attention_inputs(self, x: Float[Array, "B S D"], project: Project) -> list[Array]:
        config = self.config
        if config.fused:
            bounds = (config.query_size, config.query_size + config.key_size)
            parts = [
                constrain(part, self.mesh, ("batch", "sequence", axis))
                for part, axis in zip(
                    jnp.split(project("qkv_proj", x), bounds, axis=-1),
                    ("heads", "kv_heads", "kv_heads"),
                    strict=True,
                )
            ]
        else:
            parts = [project(name, x) for name in ("q_proj", "k_proj", "v_proj")]
        return [part.reshape(*x.shape[:2], -1, config.head_dim) for part in parts]

    def gated(self, x: Float[Array, "B S D"], project: Project) -> Float[Array, "B S F"]:
        """The MLP's wide middle: activation(gate) * up, in f32."""
        if self.config.fused:
            gate, up = jnp.split(checkpoint_name(project("gate_up_proj", x), WIDE), 2, axis=-1)
        else:
            gate, up = (checkpoint_name(project(name, x), WIDE) for name in ("gate_proj", "up_proj"))
        activate = ACTIVATIONS[self.config.activation]
        wide = (activate(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)
        return constrain(wide, self.mesh, ("batch", "sequence", "ff"))
