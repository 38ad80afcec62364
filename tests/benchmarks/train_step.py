"""Our LoRA step beside Hugging Face PEFT's: the same weights, adapter and batch.

``python -m tests.benchmarks.train_step [--json] [--cases 4x448]``. Both sides train SmolLM2-135M in f32
with an adapter of rank 16 on every projection, the last tenth of each row scored. Each measurement runs
in a child process of its own, the sides taking turns, so that its peak memory is its own. A ratio above 1
in tokens_per_second, and below 1 in peak_memory, is in our favour.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.turns import in_turns, rows_and_tokens

CASES = ((2, 512), (1, 2048))
LEARNING_RATE = 1e-3
UPDATES = 4  # the first one warms up and is not timed
SIDES = ("ours", "peft")


def measure(side: str, model: str, adapter: str, rows: int, length: int) -> dict[str, Any]:
    """Train a few updates in this process: losses, tokens a second (by the median) and peak bytes."""
    import numpy as np

    tokens = np.random.default_rng(0).integers(0, 49000, (rows, length))
    prompt = length - length // 10
    run = _ours if side == "ours" else _peft
    losses, seconds = run(model, adapter, tokens, prompt)
    return {
        "losses": losses,
        "tokens_per_second": rows * length / statistics.median(seconds[1:]),
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _ours(model: str, adapter: str, tokens: Any, prompt: int) -> tuple[list[float], list[float]]:
    import jax.numpy as jnp

    from jora_tasks.spec import TrainConfig
    from jora_tasks.trainer.batches import Batches
    from jora_tasks.trainer.data import Dataset, Example
    from jora_tasks.trainer.load import load_model
    from jora_tasks.trainer.optimizer import init_optimizer
    from jora_tasks.trainer.step import compile_step, place_batch

    rows = len(tokens)
    training = TrainConfig(batch_size=rows, learning_rate=LEARNING_RATE, warmup_ratio=0.0)
    dataset = Dataset(tuple(Example.make(str(i), row, prompt_length=prompt) for i, row in enumerate(tokens)))
    loaded = load_model(model, adapter=adapter)
    batches = Batches(dataset, rows, 1, 0)
    batch = place_batch(batches.arrays(batches.epoch(0)[0]), None)
    lora, opt_state = loaded.lora, init_optimizer(loaded, training, 10**6)
    step = compile_step(loaded, training, 10**6, opt_state, batch)
    losses, seconds = [], []
    for number in range(UPDATES):
        started = time.perf_counter()
        lora, opt_state, metrics = step(lora, opt_state, loaded.base, batch, jnp.int32(number))
        losses.append(float(metrics["loss"]))
        seconds.append(time.perf_counter() - started)
    return losses, seconds


def _peft(model: str, adapter: str, tokens: Any, prompt: int) -> tuple[list[float], list[float]]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
    tuned = PeftModel.from_pretrained(base, adapter, is_trainable=True).train()
    optimizer = torch.optim.AdamW(
        [weight for weight in tuned.parameters() if weight.requires_grad], lr=LEARNING_RATE, weight_decay=0.0
    )
    ids = torch.tensor(tokens)
    labels = ids.clone()
    labels[:, :prompt] = -100
    losses, seconds = [], []
    for _ in range(UPDATES):
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = tuned(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - started)
    return losses, seconds


def compare(model: str, adapter: str, rows: int, length: int, rounds: int) -> dict[str, Any]:
    """Both sides in turns; the best round of each counts, since noise only ever slows."""
    results = in_turns("tests.benchmarks.train_step", SIDES, [model, adapter, rows, length], rounds)
    speed = {side: max(one["tokens_per_second"] for one in results[side]) for side in SIDES}
    memory = {side: min(one["peak_memory"] for one in results[side]) for side in SIDES}
    pairs = zip(results["ours"][0]["losses"], results["peft"][0]["losses"], strict=True)
    return {
        "case": f"{rows} x {length}",
        "tokens_per_second": speed["ours"] / speed["peft"],
        "peak_memory": memory["ours"] / memory["peft"],
        "loss_difference": max(abs(ours - theirs) for ours, theirs in pairs),
        "measured": {side: {"tokens_per_second": speed[side], "peak_memory": memory[side]} for side in SIDES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side (default 2)")
    parser.add_argument(
        "--cases",
        nargs="+",
        type=rows_and_tokens,
        default=CASES,
        metavar="ROWSxTOKENS",
        help="default 2x512 1x2048",
    )
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        side, model, adapter, rows, length = arguments.child
        print(json.dumps(measure(side, model, adapter, int(rows), int(length))))
        return

    from jora_tasks.artifacts import jora_home
    from jora_tasks.models import base_model_folder
    from jora_tasks.spec import DEFAULT_BASE_MODEL, LoraConfig

    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    model = base_model_folder(DEFAULT_BASE_MODEL, jora_home())
    with tempfile.TemporaryDirectory() as folder:
        from jora_tasks.trainer.export import save_adapter
        from jora_tasks.trainer.load import load_model

        adapter = Path(folder) / "adapter"
        save_adapter(load_model(model, lora=LoraConfig(r=16)), adapter, DEFAULT_BASE_MODEL)
        ratios = []
        for rows, length in arguments.cases:
            ratios.append(compare(str(model), str(adapter), rows, length, arguments.rounds))
            if not arguments.json:
                print(_line(ratios[-1]), flush=True)
    if arguments.json:
        print(json.dumps({"ratios": ratios}))


def _line(ratio: dict[str, Any]) -> str:
    sides = "; ".join(
        f"{side} {one['tokens_per_second']:.0f} tok/s, {one['peak_memory'] / 1e9:.2f} GB"
        for side, one in ratio["measured"].items()
    )
    return (
        f"{ratio['case']}: {ratio['tokens_per_second']:.2f}x the speed, "
        f"{ratio['peak_memory']:.2f}x the memory "
        f"({sides}), losses within {ratio['loss_difference']:.1e}"
    )


if __name__ == "__main__":
    main()
