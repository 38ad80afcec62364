"""The losses over a base in f32, bf16, int8 and NF4: SmolLM2-135M, the same updates, adapter and order.

``python -m tests.benchmarks.quantization [--json] [--updates N]``. The texts are documents of the installed
Python's library: 256 tokens in a row, all of them scored. int8 and NF4 are computed in f32, since few
CPUs multiply bf16 fast. ``difference`` is the largest relative one from
bf16's losses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

CASES = (("bfloat16", "none"), ("float32", "none"), ("float32", "int8"), ("float32", "nf4"))
ROWS, LENGTH = 2, 256
EXACT = "bfloat16, none"


def texts(model: Path, count: int) -> list[list[int]]:
    """Token rows of the standard library's sources."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows: list[list[int]] = []
    for file in sorted(Path(os.__file__).parent.glob("*.py")):
        ids = tokenizer(file.read_text(encoding="utf-8", errors="replace"))["input_ids"]
        if len(ids) >= LENGTH:
            rows.append(ids[:LENGTH])
        if len(rows) == count:
            break
    return rows


def measure(model: Path, dtype: str, quantization: str, updates: int) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jora_tasks.spec import LoraConfig, TrainConfig
    from jora_tasks.trainer.batches import Batches
    from jora_tasks.trainer.data import Dataset, Example
    from jora_tasks.trainer.load import load_model
    from jora_tasks.trainer.optimizer import init_optimizer
    from jora_tasks.trainer.step import compile_step, place_batch

    training = TrainConfig(batch_size=ROWS, learning_rate=1e-3, warmup_ratio=0.0)
    rows = texts(model, ROWS * updates)
    dataset = Dataset(
        tuple(Example.make(str(i), np.array(row), prompt_length=1) for i, row in enumerate(rows))
    )
    loaded = load_model(model, dtype, lora=LoraConfig(r=16), quantization=quantization)
    batches = Batches(dataset, ROWS, 1, 0)
    lora, state, step = loaded.lora, init_optimizer(loaded, training, updates), None
    losses, seconds = [], []
    for number, update in enumerate(batches.epoch(0)):
        batch = place_batch(batches.arrays(update), None)
        step = step or compile_step(loaded, training, updates, state, batch)
        started = time.perf_counter()
        lora, state, metrics = step(lora, state, loaded.base, batch, jnp.int32(number))
        losses.append(float(metrics["loss"]))
        seconds.append(time.perf_counter() - started)
    return {
        "losses": losses,
        "base_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.base)),
        "seconds_an_update": statistics.median(seconds[1:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")
    parser.add_argument("--updates", type=int, default=6, help="updates of each (default 6)")
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    from jora_tasks.artifacts import jora_home
    from jora_tasks.models import base_model_folder
    from jora_tasks.spec import DEFAULT_BASE_MODEL

    model = base_model_folder(DEFAULT_BASE_MODEL, jora_home())
    results: dict[str, dict[str, Any]] = {}
    for dtype, quantization in CASES:
        result = measure(model, dtype, quantization, arguments.updates)
        exact = results.get(EXACT, result)["losses"]
        pairs = zip(result["losses"], exact, strict=True)
        result["difference"] = max(abs(loss / wanted - 1) for loss, wanted in pairs)
        results[f"{dtype}, {quantization}"] = result
        if not arguments.json:
            print(f"{dtype}, {quantization}: {_line(result)}", flush=True)
    if arguments.json:
        print(json.dumps(results))


def _line(result: dict[str, Any]) -> str:
    return (
        f"base {result['base_bytes'] / 1e6:.0f} MB, {result['seconds_an_update']:.2f} s an update, losses "
        f"within {result['difference']:.2%} of bf16's: {' '.join(f'{loss:.3f}' for loss in result['losses'])}"
    )


if __name__ == "__main__":
    main()
