"""What the backward pass finds of a layer, and what it computes again (arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jora_tasks.trainer.blockwise import INPUTS, OUTPUT
from jora_tasks.trainer.layer import INPUT, STREAM, UNNORMED, WIDE
from jora_tasks.trainer.lora import DORA, LOW

# What a policy keeps of a layer besides its input. "none" keeps every product of weights, never norms,
# rotations or scores.
KEPT = {
    "full": (DORA,),
    "attention": (DORA, OUTPUT),
    "none": (DORA, OUTPUT, INPUTS, LOW, STREAM, WIDE, UNNORMED),
}
CUDNN_ATTENTION = "dot_product_attention_fwd"  # how the name of JAX's operation begins; it has no other


def choices(remat: str, long: bool, platform: str) -> tuple[str, ...]:
    """The policies that a setting stands for, the one that keeps most first.

    Args:
      remat: ``full``: the layer's input is kept. ``attention``: its output too, which is as small and costs
        most to make again. ``none``: all products of weights. ``offload``: the input, in the host's memory.
        ``auto``: on GPUs whatever fits; else ``full`` where rows are long, or ``none`` on CPUs, whose
        arithmetic is scarcer than their memory, and ``attention`` on TPUs.
      long: whether rows are worked on in chunks where memory decides.
      platform: of the devices.
    """
    if remat != "auto":
        return (remat,)
    if platform == "gpu":
        return ("none", "attention", "full", "offload")
    return ("full",) if long else ("none",) if platform == "cpu" else ("attention",)


def kept(policy: str) -> str:
    """The name in `KEPT` of what a policy keeps on the device."""
    return "full" if policy == "offload" else policy


def checkpoint_policy(policy: str) -> Callable[..., Any]:
    """The policy as `jax.checkpoint` takes it."""
    if policy == "offload":
        return jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[DORA],
            names_which_can_be_offloaded=[INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        )
    named = jax.checkpoint_policies.save_only_these_names(*KEPT[policy])
    if OUTPUT not in KEPT[policy]:
        return named
    return jax.checkpoint_policies.save_from_both_policies(named, _is_cudnn_attention)


def _is_cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    return str(primitive.name).startswith(CUDNN_ATTENTION)


def compile_keeping_most(
    policies: Sequence[str],
    lower: Callable[[str], Any],
    fits: Callable[[Any], bool],
    options: dict[str, Any] | None = None,
) -> tuple[str, Any]:
    """The first policy's program that fits, or the last's.

    Args:
      policies: as `choices` orders them.
      lower: lowers the program under a policy.
      fits: whether the devices have the memory that a compiled program takes.
      options: of the compiler.
    """
    *larger, smallest = policies
    for policy in larger:
        try:
            compiled = lower(policy).compile(options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            continue
        if fits(compiled):
            return policy, compiled
    return smallest, lower(smallest).compile(options)
