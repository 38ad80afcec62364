"""How long the training loop waits for its input.

``python -m tests.benchmarks.input_pipeline [--json]``. Rows of 2,048 tokens, 8 an update, are filled from
20,000 examples of random lengths, one a row or packed, and prepared ahead while the device computes a
matrix product that takes as long as a small model's update. ``waited`` is the time in ``next`` of the
prepared updates, ``inline`` what the same work takes in the loop itself; padding is its share of the tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

EXAMPLES, LENGTH, ROWS = 20_000, 2048, 8
UPDATES = 300
MATRIX = 1024


def measure(packing: bool) -> dict[str, Any]:
    """Figures of one run: medians and the 99th percentile in milliseconds."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jora_tasks.trainer.batches import Batches
    from jora_tasks.trainer.checkpoint import Position
    from jora_tasks.trainer.data import Dataset, Example
    from jora_tasks.trainer.pipeline import updates
    from jora_tasks.trainer.step import place_batch

    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(5.5, 0.7, EXAMPLES), 16, LENGTH).astype(int)
    examples = (
        Example.make(str(i), random.integers(0, 49_000, n), prompt_length=int(n - n // 8 - 1))
        for i, n in enumerate(lengths)
    )
    batches = Batches(Dataset(tuple(examples)), ROWS, 1, 0, packing, LENGTH if packing else 0)
    planned = time.perf_counter()
    padding = batches.padding_share
    planned = time.perf_counter() - planned

    compute = jax.jit(lambda x: x @ x @ x @ x)
    matrix = jnp.ones((MATRIX, MATRIX))
    compute(matrix).block_until_ready()
    waited, computed = [], []
    prepared = updates(batches, Position(0, 0, 0), 1, None)
    for _ in range(UPDATES):
        started = time.perf_counter()
        next(prepared)
        reached = time.perf_counter()
        compute(matrix).block_until_ready()
        waited.append(1e3 * (reached - started))
        computed.append(1e3 * (time.perf_counter() - reached))
    prepared.close()
    inline = []
    for update in batches.epoch(0)[:UPDATES]:
        started = time.perf_counter()
        jax.block_until_ready(place_batch(batches.arrays(update), None))
        inline.append(1e3 * (time.perf_counter() - started))
    return {
        "rows": "packed" if packing else "one example each",
        "padding": round(padding, 4),
        "epoch_planned_ms": round(1e3 * planned, 1),
        "update_ms": round(statistics.median(computed), 3),
        "waited_ms": round(statistics.median(waited[1:]), 3),
        "waited_p99_ms": round(statistics.quantiles(waited[1:], n=100)[98], 3),
        "inline_ms": round(statistics.median(inline), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    for packing in (False, True):
        figures = measure(packing)
        print(json.dumps(figures) if as_json else ", ".join(f"{k} {v}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
