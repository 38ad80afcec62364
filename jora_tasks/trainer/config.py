"""What a decoder is made of, read from a Hugging Face ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_tasks.errors import InputError
from jora_tasks.trainer.families import FAMILIES, Family, supported
from jora_tasks.trainer.fields import count, number, optional
from jora_tasks.trainer.rope import RopeConfig, parse_rope

LOCAL, GLOBAL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Projection:
    """One linear map of a layer: sizes, logical axes and where the checkpoint keeps it."""

    name: str
    parent: str
    in_features: int
    out_features: int
    in_axis: str
    out_axis: str
    bias: bool = False


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and constants of a decoder. Hashable, so that `jax.jit` takes it as static.

    ``local_layers`` says of each layer whether it attends within ``window`` tokens only; such layers rotate
    by ``local_rope``. Caps bound what they cap to ± their value by a tanh; None caps nothing.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    local_rope: RopeConfig
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    max_positions: int = 2048
    window: int | None = None
    local_layers: tuple[bool, ...] = ()
    activation: str = "silu"
    norm_offset: float = 0.0
    sandwich_norms: bool = False
    qk_norm: bool = False
    fused: bool = False
    embed_scale: float = 1.0
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    nested: bool = False

    @property
    def tensor_prefix(self) -> str:
        """What the checkpoint's tensor names begin with where the decoder is a part of a larger model."""
        return "language_model." if self.nested else ""

    @property
    def layers_name(self) -> str:
        """What transformers calls the layers' module."""
        return "model.language_model.layers" if self.nested else "model.layers"

    @property
    def query_size(self) -> int:
        """Width of all queries of a token."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Width of all keys of a token, and of its values."""
        return self.num_key_value_heads * self.head_dim

    @property
    def projections(self) -> dict[str, Projection]:
        """The linear maps of one layer by name, in the order of the forward pass."""
        query, key, hidden, wide = self.query_size, self.key_size, self.hidden_size, self.intermediate_size
        inward = [("q_proj", query, "heads"), ("k_proj", key, "kv_heads"), ("v_proj", key, "kv_heads")]
        widening = [("gate_proj", wide), ("up_proj", wide)]
        if self.fused:
            inward, widening = [("qkv_proj", query + 2 * key, "heads")], [("gate_up_proj", 2 * wide)]
        maps = (
            *(
                Projection(name, "self_attn", hidden, n, "embed", axis, self.qkv_bias)
                for name, n, axis in inward
            ),
            Projection("o_proj", "self_attn", query, hidden, "heads", "embed", self.o_bias),
            *(Projection(name, "mlp", hidden, n, "embed", "ff") for name, n in widening),
            Projection("down_proj", "mlp", wide, hidden, "ff", "embed"),
        )
        return {projection.name: projection for projection in maps}


def read_config(folder: str | Path) -> DecoderConfig:
    """Read ``config.json`` of a model folder.

    Raises:
      InputError: if the file is missing or malformed, or describes a model that is not supported.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise InputError(f"{folder} has no config.json; give the folder of a Hugging Face model.")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not valid JSON ({error}); fetch the model again.") from None
    if not isinstance(data, dict):
        raise InputError(f"{file} must be a JSON object; fetch the model again.")
    return parse_config(data, str(file))


def parse_config(data: Mapping[str, Any], source: str = "config.json") -> DecoderConfig:
    """The `DecoderConfig` of a parsed ``config.json``; ``source`` names it in errors.

    Raises:
      InputError: naming the field that is missing, malformed or not supported.
    """
    model_type = data.get("model_type")
    nested = model_type == "gemma3"  # with images: the decoder is its text_config
    if nested:
        inner = data.get("text_config")
        if not isinstance(inner, Mapping):
            raise InputError(f"{source}: text_config must be an object, not {inner!r}.")
        model_type = "gemma3_text"
        data = {**inner, "quantization_config": data.get("quantization_config")}
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(f"{source}: model_type {model_type!r} is not supported; use one of {supported()}.")
    family = FAMILIES[model_type]
    data = {**family.defaults, **data}
    for field, remedy in REFUSED.items():
        if data.get(field):
            raise InputError(f"{source}: {field} is not supported; use {remedy}.")

    hidden, heads = count(data, "hidden_size", source), count(data, "num_attention_heads", source)
    kv_heads = count(data, "num_key_value_heads", source, default=heads)
    if heads % kv_heads:
        raise InputError(
            f"{source}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}."
        )
    if data.get("head_dim") is None and hidden % heads:
        raise InputError(
            f"{source}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}; give head_dim."
        )
    head_dim = count(data, "head_dim", source, default=hidden // heads)
    if head_dim % 2:
        raise InputError(f"{source}: head_dim {head_dim} is odd; rotary embedding needs an even one.")
    layers = count(data, "num_hidden_layers", source)
    local = _local_layers(data, family, layers, source)
    rope, local_rope = _ropes(data, family, head_dim, source)
    bias = bool(data.get("attention_bias", False))
    return DecoderConfig(
        model_type=model_type,
        vocab_size=count(data, "vocab_size", source),
        hidden_size=hidden,
        intermediate_size=count(data, "intermediate_size", source),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=number(data, "rms_norm_eps", source, default=1e-6),
        rope=rope,
        local_rope=local_rope,
        tie_word_embeddings=bool(data.get("tie_word_embeddings", False)),
        qkv_bias=bias or family.qkv_bias,
        o_bias=bias and not family.qkv_bias,
        max_positions=count(data, "max_position_embeddings", source, default=2048),
        window=count(data, "sliding_window", source) if any(local) else None,
        local_layers=local,
        activation=_activation(data, family, source),
        norm_offset=1.0 if family.gemma else 0.0,
        sandwich_norms=family.sandwich_norms,
        qk_norm=family.qk_norm,
        fused=family.fused,
        embed_scale=hidden**0.5 if family.gemma else 1.0,
        attention_scale=(optional(data, "query_pre_attn_scalar", source) or head_dim) ** -0.5,
        attention_softcap=optional(data, "attn_logit_softcapping", source) if family.softcaps else None,
        logit_softcap=optional(data, "final_logit_softcapping", source),
        nested=nested,
    )


REFUSED = {
    "mlp_bias": "a model without it",
    "quantization_config": "the float checkpoint, since quantised weights are read from no file",
    "use_bidirectional_attention": "a model that attends to earlier tokens only",
}


def _activation(data: Mapping[str, Any], family: Family, source: str) -> str:
    field = "hidden_activation" if data.get("hidden_activation") else "hidden_act"
    name = data.get(field, "silu")
    # Gemma's first configurations say gelu and mean the tanh form.
    known = {"gelu": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"} if family.gemma else {"silu": "silu"}
    if name not in known:
        raise InputError(f"{source}: {field} {name!r} is not supported; use {list(known)[-1]}.")
    return known[name]


def _local_layers(data: Mapping[str, Any], family: Family, layers: int, source: str) -> tuple[bool, ...]:
    """Whether each layer attends within the window only."""
    everywhere = (False,) * layers
    if family.windows == "none" or data.get("sliding_window") is None:
        return everywhere
    if family.windows == "all":
        return (True,) * layers
    if family.windows == "upper" and not data.get("use_sliding_window"):
        return everywhere
    types = data.get("layer_types")
    if types is None:
        if family.windows == "upper":
            first = data["max_window_layers"]
            if not isinstance(first, int):
                raise InputError(f"{source}: max_window_layers must be a whole number, not {first!r}.")
            return tuple(layer >= first for layer in range(layers))
        every = count(data, "sliding_window_pattern", source)
        return tuple((layer + 1) % every != 0 for layer in range(layers))
    if not isinstance(types, list) or len(types) != layers or not set(types) <= {LOCAL, GLOBAL}:
        raise InputError(
            f"{source}: layer_types must name {LOCAL} or {GLOBAL} for each of the {layers} layers."
        )
    return tuple(name == LOCAL for name in types)


def _ropes(
    data: Mapping[str, Any], family: Family, head_dim: int, source: str
) -> tuple[RopeConfig, RopeConfig]:
    """Of layers that attend to every token, and of those with a window.

    In both spellings: ``rope_theta`` with ``rope_scaling``, and ``rope_parameters`` (transformers 5), which
    a family with two has by layer type.
    """
    field = "rope_parameters" if data.get("rope_parameters") else "rope_scaling"
    given = data.get(field) or {}
    if not isinstance(given, Mapping):
        raise InputError(f"{source}: {field} must be an object, not {given!r}.")
    if not family.two_ropes:
        rope = parse_rope(given, data, head_dim, source, field)
        return rope, rope
    nested = {kind: given.get(kind) or {} for kind in (GLOBAL, LOCAL)}
    if not {GLOBAL, LOCAL} & set(given):
        nested[GLOBAL] = given
    if not all(isinstance(value, Mapping) for value in nested.values()):
        raise InputError(f"{source}: {field} must hold an object for each of {GLOBAL} and {LOCAL}.")
    local = {**data, "rope_theta": data.get("rope_local_base_freq")}
    return (
        parse_rope(nested[GLOBAL], data, head_dim, source, field),
        parse_rope(nested[LOCAL], local, head_dim, source, field),
    )
