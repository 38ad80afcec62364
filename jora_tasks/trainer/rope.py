"""Rotary position embedding (arXiv 2104.09864): its settings in a ``config.json``, and its frequencies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from jora_tasks.errors import InputError
from jora_tasks.trainer.fields import count, number, optional

SUPPORTED = ("default", "linear", "llama3", "longrope")


@dataclass(frozen=True)
class RopeConfig:
    """How fast each pair of a head's numbers turns, and how that is stretched for long texts.

    ``linear`` divides every frequency by ``factor``. ``llama3`` divides those with wavelengths beyond
    ``original_max_positions / low_freq_factor``, keeps those below ``original_max_positions /
    high_freq_factor`` and blends between (Llama 3.1's rule). ``longrope`` (arXiv 2402.13753) divides each
    by a factor of its own, out of ``long_factors`` in texts longer than ``original_max_positions``, and
    scales cosine and sine by ``attention_factor``. Only the first ``share`` of each head is rotated.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float = 1.0
    share: float = 1.0

    def rotated(self, head_dim: int) -> int:
        """How many numbers of a head are rotated."""
        return int(head_dim * self.share)

    def frequencies(self, head_dim: int, long: bool = False) -> Float[np.ndarray, " half"]:
        """Radians a position, f32; ``long`` for texts beyond ``original_max_positions``."""
        size = self.rotated(head_dim)
        exponents = np.arange(size // 2, dtype=np.float32) * 2 / size
        plain = (1.0 / np.float32(self.theta) ** exponents).astype(np.float32)
        if self.kind == "linear":
            return plain / np.float32(self.factor)
        if self.kind == "llama3":
            waves = self.original_max_positions * plain / (2 * math.pi)
            kept = (waves - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
            kept = np.clip(kept, 0.0, 1.0).astype(np.float32)
            return (1 - kept) * plain / np.float32(self.factor) + kept * plain
        if self.kind == "longrope":
            return plain / np.array(self.long_factors if long else self.short_factors, np.float32)
        return plain


def parse_rope(
    given: Mapping[str, Any], data: Mapping[str, Any], head_dim: int, source: str, field: str
) -> RopeConfig:
    """The settings ``given`` by ``field`` (``rope_scaling``, ``rope_parameters``) of the config ``data``.

    Raises:
      InputError: naming the setting that is missing, malformed or not supported.
    """
    kind = given.get("rope_type", given.get("type", "default"))
    if data.get("model_type") == "phi3" and kind in ("su", "yarn"):  # as its first configurations call it
        kind = "longrope"
    if kind not in SUPPORTED:
        raise InputError(
            f"{source}: {field} of type {kind!r} is not supported; use one of {', '.join(SUPPORTED)}."
        )
    both = {**data, **{name: value for name, value in given.items() if value is not None}}
    share = number(both, "partial_rotary_factor", source, default=1.0)
    if share > 1 or int(head_dim * share) < 2 or int(head_dim * share) % 2:
        raise InputError(
            f"{source}: partial_rotary_factor {share} must rotate an even part of head_dim {head_dim}."
        )
    theta = number(both, "rope_theta", source, default=10000.0)
    if kind == "default":
        return RopeConfig(theta=theta, share=share)
    if kind == "linear":
        return RopeConfig(theta=theta, share=share, kind=kind, factor=number(given, "factor", source))

    longest = count(data, "max_position_embeddings", source, default=2048)
    outer = data.get("original_max_position_embeddings") is not None  # comes before one in the field
    original_max = count(data if outer else given, "original_max_position_embeddings", source, longest)
    if kind == "longrope":
        stretch = optional(given, "factor", source) or longest / original_max
        usual = math.sqrt(1 + math.log(stretch) / math.log(original_max)) if stretch > 1 else 1.0
        return RopeConfig(
            theta=theta,
            share=share,
            kind=kind,
            original_max_positions=original_max,
            short_factors=_factors(given, "short_factor", int(head_dim * share) // 2, source),
            long_factors=_factors(given, "long_factor", int(head_dim * share) // 2, source),
            attention_factor=optional(given, "attention_factor", source) or usual,
        )
    rope = RopeConfig(
        theta=theta,
        share=share,
        kind=kind,
        factor=number(given, "factor", source),
        low_freq_factor=number(given, "low_freq_factor", source),
        high_freq_factor=number(given, "high_freq_factor", source),
        original_max_positions=original_max,
    )
    if rope.high_freq_factor <= rope.low_freq_factor:
        raise InputError(f"{source}: {field}.high_freq_factor must be larger than low_freq_factor.")
    return rope


def _factors(given: Mapping[str, Any], field: str, length: int, source: str) -> tuple[float, ...]:
    values = given.get(field)
    if not isinstance(values, list) or len(values) != length:
        raise InputError(f"{source}: {field} must be a list of {length} numbers, one for each frequency.")
    return tuple(number({field: value}, field, source) for value in values)
