"""What this machine's CPU multiplies fast."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def multiplies_bf16() -> bool:
    """Whether the CPU has units for bf16 matrices (Intel's AMX), several times as fast as f32."""
    try:
        facts = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
    flags = next((line for line in facts.splitlines() if line.startswith("flags")), "")
    return "amx_bf16" in flags.split()
