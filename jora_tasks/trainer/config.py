"""What a decoder is made of, read from a Hugging Face ``config.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_tasks.errors import InputError

SUPPORTED_TYPES = ("llama", "mistral", "qwen2")
SUPPORTED_ROPE = ("default", "linear", "llama3")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (arXiv 2104.09864) and how its frequencies are stretched.

    ``linear`` divides every frequency by ``factor``. ``llama3`` divides those with wavelengths beyond
    ``original_max_positions / low_freq_factor``, keeps those below ``original_max_positions /
    high_freq_factor`` and blends between (Llama 3.1's rule).
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


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
    """Sizes and constants of a Llama-family decoder. Hashable, so that `jax.jit` takes it as static."""

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
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    max_positions: int = 2048

    @property
    def projections(self) -> dict[str, Projection]:
        """The linear maps of one layer by name, in the order of the forward pass."""
        query, value = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        hidden, wide = self.hidden_size, self.intermediate_size
        maps = (
            Projection("q_proj", "self_attn", hidden, query, "embed", "heads", self.qkv_bias),
            Projection("k_proj", "self_attn", hidden, value, "embed", "kv_heads", self.qkv_bias),
            Projection("v_proj", "self_attn", hidden, value, "embed", "kv_heads", self.qkv_bias),
            Projection("o_proj", "self_attn", query, hidden, "heads", "embed", self.o_bias),
            Projection("gate_proj", "mlp", hidden, wide, "embed", "ff"),
            Projection("up_proj", "mlp", hidden, wide, "embed", "ff"),
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
    if model_type not in SUPPORTED_TYPES:
        raise InputError(
            f"{source}: model_type {model_type!r} is not supported; use one of {', '.join(SUPPORTED_TYPES)}."
        )
    if data.get("hidden_act", "silu") != "silu":
        raise InputError(f"{source}: hidden_act {data['hidden_act']!r} is not supported; use silu.")
    if data.get("mlp_bias"):
        raise InputError(f"{source}: mlp_bias is not supported; use a model without it.")
    if data.get("quantization_config"):
        raise InputError(f"{source}: quantised weights are not supported; use the float checkpoint.")
    if _slides(model_type, data):
        raise InputError(
            f"{source}: sliding-window attention is not supported; use a model that attends to every token."
        )

    hidden, heads = _count(data, "hidden_size", source), _count(data, "num_attention_heads", source)
    kv_heads = _count(data, "num_key_value_heads", source, default=heads)
    if heads % kv_heads:
        raise InputError(
            f"{source}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}."
        )
    if data.get("head_dim") is None and hidden % heads:
        raise InputError(
            f"{source}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}; give head_dim."
        )
    head_dim = _count(data, "head_dim", source, default=hidden // heads)
    if head_dim % 2:
        raise InputError(f"{source}: head_dim {head_dim} is odd; rotary embedding needs an even one.")
    max_positions = _count(data, "max_position_embeddings", source, default=2048)
    bias = model_type == "qwen2" or bool(data.get("attention_bias", False))
    return DecoderConfig(
        model_type=model_type,
        vocab_size=_count(data, "vocab_size", source),
        hidden_size=hidden,
        intermediate_size=_count(data, "intermediate_size", source),
        num_hidden_layers=_count(data, "num_hidden_layers", source),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=_number(data, "rms_norm_eps", source, default=1e-6),
        rope=_rope(data, max_positions, source),
        tie_word_embeddings=bool(data.get("tie_word_embeddings", False)),
        qkv_bias=bias,
        o_bias=bias and model_type != "qwen2",
        max_positions=max_positions,
    )


def _slides(model_type: str, data: Mapping[str, Any]) -> bool:
    if model_type == "mistral":
        return data.get("sliding_window") is not None
    return bool(data.get("use_sliding_window"))


def _rope(data: Mapping[str, Any], max_positions: int, source: str) -> RopeConfig:
    """Both spellings: ``rope_theta`` with ``rope_scaling``, and ``rope_parameters`` (transformers 5)."""
    field = "rope_parameters" if data.get("rope_parameters") else "rope_scaling"
    given = data.get(field) or {}
    if not isinstance(given, Mapping):
        raise InputError(f"{source}: {field} must be an object, not {given!r}.")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in SUPPORTED_ROPE:
        raise InputError(
            f"{source}: {field} of type {kind!r} is not supported; use one of {', '.join(SUPPORTED_ROPE)}."
        )
    if given.get("partial_rotary_factor", data.get("partial_rotary_factor") or 1.0) != 1.0:
        raise InputError(
            f"{source}: partial_rotary_factor is not supported; use a model that rotates whole heads."
        )
    theta = _number(given, "rope_theta", source, default=_number(data, "rope_theta", source, default=10000.0))
    if kind == "default":
        return RopeConfig(theta=theta)
    factor = _number(given, "factor", source)
    if kind == "linear":
        return RopeConfig(theta=theta, kind=kind, factor=factor)
    rope = RopeConfig(
        theta=theta,
        kind=kind,
        factor=factor,
        low_freq_factor=_number(given, "low_freq_factor", source),
        high_freq_factor=_number(given, "high_freq_factor", source),
        original_max_positions=_count(
            given, "original_max_position_embeddings", source, default=max_positions
        ),
    )
    if rope.high_freq_factor <= rope.low_freq_factor:
        raise InputError(f"{source}: {field}.high_freq_factor must be larger than low_freq_factor.")
    return rope


def _count(data: Mapping[str, Any], field: str, source: str, default: int | None = None) -> int:
    value = data.get(field)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{source}: {field} must be a whole number of at least 1, not {value!r}.")
    return value


def _number(data: Mapping[str, Any], field: str, source: str, default: float | None = None) -> float:
    value = data.get(field)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{source}: {field} must be a number above 0, not {value!r}.")
    return float(value)
