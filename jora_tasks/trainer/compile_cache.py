"""Compiled programs on disk, so that the second start compiles nothing."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from pathlib import Path


def use_compile_cache(home: Path) -> None:
    """Let JAX keep in ``home/cache/jax`` what this process compiles, and take from there what it finds.

    A cache that is set already, as by ``JAX_COMPILATION_CACHE_DIR``, is left as it is. A folder that cannot
    be written to is read from; one that cannot be made is not used. Processes may share one: an entry that
    another one is still writing is compiled anew.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"]:
        return
    place = home / "cache" / "jax" / _processor()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)  # programs of every size
    worth = 0.0 if os.access(place, os.W_OK) else math.inf  # seconds of compiling from which one is kept
    jax.config.update("jax_persistent_cache_min_compile_time_secs", worth)


def _processor() -> str:
    """This machine's kind: what is compiled for a CPU uses its instructions."""
    facts = [platform.machine()]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts += [next(line for line in lines if line.startswith(("flags", "Features")))]
    except (OSError, StopIteration):
        facts += [platform.processor()]
    return f"{facts[0]}-{hashlib.sha256(facts[1].encode()).hexdigest()[:12]}"
