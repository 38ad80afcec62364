"""What a compiled program takes; out of memory told as one sentence that names the longest example."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jora_tasks.errors import InputError
from jora_tasks.trainer.data import Example

GPU_SHARE = 0.92
"""Of a GPU's memory, what training takes; the rest is the driver's and the libraries'."""

ROOM = 0.97
"""Of what a device has, what a program may take that could be a smaller one: a checkpoint needs copies."""


def take_gpu_memory() -> None:
    """Let JAX have `GPU_SHARE` of a GPU, where nobody has said otherwise; before any device is used."""
    if not any(name.startswith("XLA_PYTHON_CLIENT_") for name in os.environ):
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(GPU_SHARE)


@contextlib.contextmanager
def fitting(examples: Sequence[Example], rows: int) -> Iterator[None]:
    """Turn a device's refusal of memory into an error of the user's.

    Args:
      examples: those of the batch that is compiled or computed.
      rows: examples in a forward pass.

    Raises:
      InputError: naming the longest of the examples.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(_sentence(examples, rows)) from error


def check_program(compiled: Any, examples: Sequence[Example], rows: int) -> None:
    """Hold what a compiled program will take against what its device has, where both are known.

    Raises:
      InputError: if it cannot run; names the longest of the examples.
    """
    analysis = compiled.memory_analysis()
    device = next(iter(jax.tree.leaves(compiled.input_shardings)[0].addressable_devices))
    limit = memory_of(device)
    if analysis is None or limit is None:
        return
    needed = program_bytes(analysis)
    if needed > limit:
        raise InputError(_sentence(examples, rows, f" ({needed / 1e9:.1f} GB of {limit / 1e9:.1f} GB)"))


def memory_of(device: jax.Device) -> int | None:
    """Bytes that programs may take on a device; None where it does not tell, as CPUs do not."""
    return (device.memory_stats() or {}).get("bytes_limit")


def leaves_room(compiled: Any, limit: int | None) -> bool:
    """Whether a compiled program leaves something of so many bytes; True where either is not known."""
    analysis = compiled.memory_analysis()
    return analysis is None or limit is None or program_bytes(analysis) <= ROOM * limit


def program_bytes(analysis: Any) -> int:
    """What a compiled program takes on a device, arguments included, by its ``memory_analysis()``."""
    return (
        analysis.argument_size_in_bytes
        + analysis.temp_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def main_memory_bytes(dumps: Path) -> int | None:
    """What a compiled program takes of a device's main memory, by the report in the compiler's dumps.

    A TPU's ``memory_analysis()`` also counts its small fast memory (VMEM) among the temporaries.

    Args:
      dumps: the folder that the compiler option ``xla_dump_to`` named for this program alone.
    """
    for file in dumps.glob("*memory-usage-report.txt"):
        if found := re.search(r"Memory Space: default \(color=0\)\s+Total bytes: (\d+)", file.read_text()):
            return int(found[1])
    return None


def _sentence(examples: Sequence[Example], rows: int, figures: str = "") -> str:
    longest = max(examples, key=lambda example: len(example.input_ids))
    return (
        f"example {longest.id} of {len(longest.input_ids):,} tokens does not fit in the device's memory "
        f"with training.batch_size {rows}{figures}; lower it (training.gradient_accumulation keeps the size "
        "of an update), shorten the example or split the work over more devices."
    )
