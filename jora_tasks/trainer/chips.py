"""What accelerators can do at most, by their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One device as JAX names it.

    Attributes:
      kind: how its ``device_kind`` begins.
      flops: dense bf16 FLOP/s.
      memory: bytes of main memory; None where JAX says it.
      memory_bandwidth: bytes/s of it.
      link_bandwidth: bytes/s that it sends to its neighbours, all links at once.
    """

    kind: str
    flops: float
    memory: int | None = None
    memory_bandwidth: float | None = None
    link_bandwidth: float | None = None


# From Google Cloud's page on each TPU version; v4's bandwidths from the figures of 1.2 TB/s and of six links
# of 50 GB/s that are told of it.
TPUS = {
    "v4": Chip("TPU v4", 275e12, 32 << 30, 1200e9, 300e9),
    "v5e": Chip("TPU v5 lite", 197e12, 16 << 30, 800e9, 200e9),
    "v5p": Chip("TPU v5", 459e12, 95 << 30, 2765e9, 600e9),
    "v6e": Chip("TPU v6 lite", 918e12, 32 << 30, 1600e9, 400e9),
}

GPUS = (
    Chip("NVIDIA H200", 989e12),
    Chip("NVIDIA H100 PCIe", 756e12),
    Chip("NVIDIA H100", 989e12),
    Chip("NVIDIA A100", 312e12),
    Chip("NVIDIA L40S", 362e12),
    Chip("NVIDIA L4", 121e12),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip with the longest name that the kind begins with; None for one that is not known."""
    known = [chip for chip in (*TPUS.values(), *GPUS) if device_kind.startswith(chip.kind)]
    return max(known, key=lambda chip: len(chip.kind), default=None)
