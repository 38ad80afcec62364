"""What accelerators can do at most, by their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Cuda:
    """What a compiler for an NVIDIA GPU asks of it.

    Attributes:
      compute_capability: as in 9.0.
      multiprocessors: of the whole chip.
      lanes: f32 operations that a multiprocessor does at once.
      threads: that a multiprocessor holds.
      clock_ghz: at most.
      cache: bytes of the second level.
      shared_memory: bytes of a multiprocessor; a block may have all but 1 KiB.
    """

    compute_capability: tuple[int, int]
    multiprocessors: int
    lanes: int
    threads: int
    clock_ghz: float
    cache: int
    shared_memory: int


@dataclass(frozen=True)
class Chip:
    """One device as JAX names it.

    Attributes:
      kind: how its ``device_kind`` begins.
      flops: dense bf16 FLOP/s.
      memory: bytes of main memory.
      memory_bandwidth: bytes/s of it.
      link_bandwidth: bytes/s that it sends to its neighbours, all links at once.
      cuda: for NVIDIA GPUs.
    """

    kind: str
    flops: float
    memory: int
    memory_bandwidth: float
    link_bandwidth: float
    cuda: Cuda | None = None


# From Google Cloud's page on each TPU version; v4's bandwidths from the figures of 1.2 TB/s and of six links
# of 50 GB/s that are told of it.
TPUS = {
    "v4": Chip("TPU v4", 275e12, 32 << 30, 1200e9, 300e9),
    "v5e": Chip("TPU v5 lite", 197e12, 16 << 30, 800e9, 200e9),
    "v5p": Chip("TPU v5", 459e12, 95 << 30, 2765e9, 600e9),
    "v6e": Chip("TPU v6 lite", 918e12, 32 << 30, 1600e9, 400e9),
}

_HOPPER = Cuda((9, 0), 132, 128, 2048, 1.98, 50 << 20, 228 << 10)
_ADA = Cuda((8, 9), 142, 128, 1536, 2.52, 96 << 20, 100 << 10)

# From NVIDIA's data sheets and the table of compute capabilities in its CUDA programming guide; half of what
# NVLink moves both ways, or PCIe's one way where there is none.
GPUS = {
    "h200": Chip("NVIDIA H200", 989e12, 141 * 10**9, 4800e9, 450e9, replace(_HOPPER, cache=60 << 20)),
    "h100-pcie": Chip(
        "NVIDIA H100 PCIe",
        756e12,
        80 * 10**9,
        2000e9,
        64e9,
        replace(_HOPPER, multiprocessors=114, clock_ghz=1.755),
    ),
    "h100": Chip("NVIDIA H100", 989e12, 80 * 10**9, 3350e9, 450e9, _HOPPER),
    "a100": Chip(
        "NVIDIA A100",
        312e12,
        80 * 10**9,
        2039e9,
        300e9,
        Cuda((8, 0), 108, 64, 2048, 1.41, 40 << 20, 164 << 10),
    ),
    "l40s": Chip("NVIDIA L40S", 362e12, 48 * 10**9, 864e9, 32e9, _ADA),
    "l4": Chip(
        "NVIDIA L4",
        121e12,
        24 * 10**9,
        300e9,
        32e9,
        replace(_ADA, multiprocessors=58, clock_ghz=2.04, cache=48 << 20),
    ),
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip with the longest name that the kind begins with; None for one that is not known."""
    known = [chip for chip in (*TPUS.values(), *GPUS.values()) if device_kind.startswith(chip.kind)]
    return max(known, key=lambda chip: len(chip.kind), default=None)
