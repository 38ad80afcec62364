"""Floating-point operations of a LoRA step, and the peak they are held against.

The count is of what must be computed, not of what is executed: a frozen base takes a forward pass
and the gradient of its activations, 4N a token, where full training takes 6N. Recomputation adds
nothing to it, and padding is not work.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jora_tasks.spec import LoraConfig
from jora_tasks.trainer.chips import chip_of
from jora_tasks.trainer.config import DecoderConfig
from jora_tasks.trainer.targets import HEAD, lora_targets


def step_flops(config: DecoderConfig, lora: LoraConfig, lengths: Iterable[int], scored_tokens: int) -> float:
    """FLOPs of one forward and backward pass over sequences of these lengths.

    A token costs 4N for the N frozen weights of the layers and 6 for each adapter weight (which has a
    weight gradient too); a pair of tokens of which one attends to the other 12 d in each layer,
    d = heads * head_dim, and a sequence of S tokens has S^2 / 2 pairs, of which a layer with a window W
    keeps W S - W^2 / 2; a scored token 4 D V for the head, 6 D V where that is trained.
    """
    lengths = list(lengths)
    frozen, adapter = _weights(config, lora)
    head = (6 if HEAD in lora.modules_to_save else 4) * config.hidden_size * config.vocab_size
    of_attention = 12 * config.query_size * _pairs(config, lengths)
    return float((4 * frozen + 6 * adapter) * sum(lengths) + of_attention + head * scored_tokens)


def again_flops(config: DecoderConfig, lora: LoraConfig, lengths: Iterable[int], keeps: str) -> float:
    """FLOPs that the backward pass spends on what it computes again, beyond `step_flops`.

    Args:
      keeps: ``none``, ``attention`` or ``full``, as `model.KEPT`: the products of weights are computed again
        with the last two, attention with the last. The scores of each pair always are, 2 d in each layer.
    """
    lengths = list(lengths)
    of_attention = config.query_size * _pairs(config, lengths)
    again = 2.0 * of_attention
    if keeps != "none":
        again += 2 * sum(_weights(config, lora)) * sum(lengths)
    return again + (4 * of_attention if keeps == "full" else 0)


def _pairs(config: DecoderConfig, lengths: list[int]) -> float:
    """Pairs of tokens of which one attends to the other, in all layers."""
    local = sum(config.local_layers)
    reach = [min(length, config.window or length) for length in lengths]
    near = sum(2 * near * length - near**2 for near, length in zip(reach, lengths, strict=True))
    return ((config.num_hidden_layers - local) * sum(length**2 for length in lengths) + local * near) / 2


@functools.lru_cache(maxsize=8)
def _weights(config: DecoderConfig, lora: LoraConfig) -> tuple[int, int]:
    """Frozen weights of the layers' projections, and those of the adapter."""
    sizes = {name: (one.in_features, one.out_features) for name, one in config.projections.items()}
    frozen = config.num_hidden_layers * sum(inputs * outputs for inputs, outputs in sizes.values())
    return frozen, sum(lora.r * sum(sizes[name]) * len(at) for name, at in lora_targets(config, lora).items())


def peak_flops(devices: Iterable[Any]) -> float | None:
    """Peak FLOP/s of these devices together, or None where it is not known.

    Accelerators by `chips`. A CPU by a measured f32 matrix product, on as many cores as this process has:
    virtual CPU devices share them, so it counts once.
    """
    devices = list(devices)
    if devices[0].platform == "cpu":
        return _measured_cpu_peak()
    chip = chip_of(devices[0].device_kind)
    return chip.flops * len(devices) if chip else None


@functools.cache
def _measured_cpu_peak() -> float:
    size = 1024
    matrix = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    product(matrix).block_until_ready()
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        product(matrix).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
