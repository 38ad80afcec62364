"""What the loop costs beside the compiled updates: ``python -m tests.benchmarks.loop_costs [--json]``.

Host overhead: seconds of an update in the whole loop (batches, figures, metrics.jsonl, on_step) less those
of the compiled call alone, on a model so small that the host is what counts. Checkpoints, on SmolLM2-135M
(r 16 all-linear, 2 x 512 tokens): the share of the time for which a save holds the loop up, and the share if
all of a save, written in the background, held it up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

UPDATES, ROUNDS = 300, 5
CHECKPOINTED_UPDATES = {10: 20, 1: 6}


def host_overhead() -> dict[str, float]:
    """Microseconds an update, of the clock and of the main thread's CPU: the loop's, the compiled call's and
    what is between. Of each the best round's median, since noise only ever slows."""
    import jax
    import numpy as np

    from jora_tasks.spec import TrainConfig
    from jora_tasks.trainer.batches import Batches
    from jora_tasks.trainer.optimizer import init_optimizer
    from jora_tasks.trainer.step import compile_step, place_batch
    from jora_tasks.trainer.train import train_lora
    from tests.trainer import tiny_run

    model, dataset = tiny_run.model(), tiny_run.dataset(8, longest=60)
    batches = Batches(dataset, 8, 1, 0)
    training = TrainConfig(epochs=UPDATES, batch_size=8, checkpoint_every=UPDATES)
    batch = place_batch(batches.arrays(batches.epoch(0)[0]), None)
    rounds: dict[str, list[float]] = {"loop": [], "call": [], "loop_cpu": [], "call_cpu": []}
    for _ in range(ROUNDS):
        seconds: list[float] = []
        cpu: list[float] = []

        def on_step(
            metrics: Mapping[str, Any], seconds: list[float] = seconds, cpu: list[float] = cpu
        ) -> None:
            seconds.append(metrics["seconds"])
            cpu.append(time.thread_time())

        with tempfile.TemporaryDirectory() as folder:
            train_lora(
                model, dataset, tiny_run.LORA, training, output=Path(folder) / "adapter", base_name="tiny",
                on_step=on_step,
            )  # fmt: skip
        rounds["loop"].append(statistics.median(seconds[10:]) * 1e6)
        rounds["loop_cpu"].append(statistics.median(map(_difference, cpu[10:], cpu[11:])) * 1e6)
        lora, state = (
            jax.tree.map(lambda leaf: leaf + 0, model.lora),
            init_optimizer(model, training, UPDATES),
        )
        step = compile_step(model, training, UPDATES, state, batch)
        last, seconds, cpu = None, [], []
        for number in range(UPDATES):
            started = time.perf_counter()
            lora, state, measured = step(lora, state, model.base, batch, np.int32(number))
            jax.block_until_ready(last)  # as the loop: one update ahead
            last = measured
            seconds.append(time.perf_counter() - started)
            cpu.append(time.thread_time())
        rounds["call_cpu"].append(statistics.median(map(_difference, cpu[10:], cpu[11:])) * 1e6)
        rounds["call"].append(statistics.median(seconds[10:]) * 1e6)
    best = {side: min(values) for side, values in rounds.items()}
    return {
        **best,
        "overhead": best["loop"] - best["call"],
        "overhead_cpu": best["loop_cpu"] - best["call_cpu"],
    }


def _difference(before: float, after: float) -> float:
    return after - before


def checkpoint_cost(every: int) -> dict[str, float]:
    """Shares of the time of a run with a checkpoint every so many updates, and a save's seconds."""
    import numpy as np

    from jora_tasks.artifacts import jora_home
    from jora_tasks.models import base_model_folder
    from jora_tasks.spec import DEFAULT_BASE_MODEL, LoraConfig, TrainConfig
    from jora_tasks.trainer.checkpoint import Position, WorkFolder
    from jora_tasks.trainer.data import Dataset, Example
    from jora_tasks.trainer.load import load_model
    from jora_tasks.trainer.train import train_lora

    held: list[float] = []
    whole: list[float] = []
    save, sealed = WorkFolder.save, WorkFolder._seal_when_written
    began = 0.0

    def timed_save(self: WorkFolder, position: Position, state: Any) -> None:
        nonlocal began
        began = time.perf_counter()
        save(self, position, state)
        held.append(time.perf_counter() - began)

    def timed_sealing(self: WorkFolder, step: int, metrics: str) -> None:
        sealed(self, step, metrics)
        whole.append(time.perf_counter() - began)

    tokens = np.random.default_rng(0).integers(0, 49000, (2 * CHECKPOINTED_UPDATES[every], 512))
    dataset = Dataset(tuple(Example.make(str(i), row, prompt_length=460) for i, row in enumerate(tokens)))
    lora = LoraConfig(r=16)
    model = load_model(base_model_folder(DEFAULT_BASE_MODEL, jora_home()), lora=lora)
    seconds: list[float] = []
    WorkFolder.save, WorkFolder._seal_when_written = timed_save, timed_sealing  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            train_lora(
                model, dataset, lora, TrainConfig(batch_size=2, checkpoint_every=every),
                output=Path(folder) / "adapter", on_step=lambda metrics: seconds.append(metrics["seconds"]),
            )  # fmt: skip
    finally:
        WorkFolder.save, WorkFolder._seal_when_written = save, sealed  # type: ignore[method-assign]
    update = statistics.median(seconds)
    return {
        "every": every,
        "seconds_an_update": update,
        "seconds_held_up": statistics.median(held),
        "seconds_a_save": statistics.median(whole),
        "share_held_up": statistics.median(held) / (every * update),
        "share_if_all_held_up": statistics.median(whole) / (every * update),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")
    parser.add_argument("--every", type=int, nargs="*", default=list(CHECKPOINTED_UPDATES))
    arguments = parser.parse_args()
    host = host_overhead()
    checkpoints = [checkpoint_cost(every) for every in arguments.every]
    if arguments.json:
        print(json.dumps({"host": host, "checkpoints": checkpoints}))
        return
    print(
        f"host: {host['loop']:.0f} us an update in the loop, {host['call']:.0f} us the compiled call, "
        f"{host['overhead']:.0f} us between; of the main thread's CPU {host['loop_cpu']:.0f}, "
        f"{host['call_cpu']:.0f} and {host['overhead_cpu']:.0f} us"
    )
    for one in checkpoints:
        held, whole = one["seconds_held_up"] * 1e3, one["seconds_a_save"] * 1e3
        print(
            f"a checkpoint every {one['every']} updates of {one['seconds_an_update']:.2f} s: holds the loop "
            f"up for {held:.0f} ms, {one['share_held_up']:.2%} of the time; all of it takes {whole:.0f} ms, "
            f"{one['share_if_all_held_up']:.2%}"
        )


if __name__ == "__main__":
    main()
