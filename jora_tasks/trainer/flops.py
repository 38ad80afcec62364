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
from jora_tasks.trainer.config import DecoderConfig
from jora_tasks.trainer.targets import HEAD, lora_targets

# Dense bf16 peaks from the makers' data sheets, in FLOP/s, by jax's device_kind. Longer names first.
BF16_PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def step_flops(config: DecoderConfig, lora: LoraConfig, lengths: Iterable[int], scored_tokens: int) -> float:
    """FLOPs of one forward and backward pass over sequences of these lengths.

    A token costs 4N for the N frozen weights of the layers and 6 for each adapter weight (which has a
    weight gradient too); a pair of tokens of which one attends to the other 12 d in each layer,
    d = heads * head_dim, and a sequence of S tokens has S^2 / 2 pairs, of which a layer with a window W
    keeps W S - W^2 / 2; a scored token 4 D V for the head, 6 D V where that is trained.
    """
    lengths = list(lengths)
    local = sum(config.local_layers)
    reach = [min(length, config.window or length) for length in lengths]
    pairs = (config.num_hidden_layers - local) * sum(length**2 for length in lengths) + local * sum(
        2 * near * length - near**2 for near, length in zip(reach, lengths, strict=True)
    )  # counted twice
    of_token, of_scored = _token_flops(config, lora)
    return float(of_token * sum(lengths) + 6 * config.query_size * pairs + of_scored * scored_tokens)


@functools.lru_cache(maxsize=8)
def _token_flops(config: DecoderConfig, lora: LoraConfig) -> tuple[int, int]:
    """What any token costs apart from attention, and what a scored one costs besides."""
    sizes = {name: (one.in_features, one.out_features) for name, one in config.projections.items()}
    frozen = config.num_hidden_layers * sum(inputs * outputs for inputs, outputs in sizes.values())
    adapter = sum(lora.r * sum(sizes[name]) * len(at) for name, at in lora_targets(config, lora).items())
    head = 6 if HEAD in lora.modules_to_save else 4
    return 4 * frozen + 6 * adapter, head * config.hidden_size * config.vocab_size


def peak_flops(devices: Iterable[Any]) -> float | None:
    """Peak FLOP/s of these devices together, or None where it is not known.

    Accelerators by the table of dense bf16 peaks. A CPU by a measured f32 matrix product, on as many
    cores as this process has: virtual CPU devices share them, so it counts once.
    """
    devices = list(devices)
    if devices[0].platform == "cpu":
        return _measured_cpu_peak()
    kind = devices[0].device_kind
    for name, peak in BF16_PEAKS.items():
        if kind.startswith(name):
            return peak * len(devices)
    return None


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
