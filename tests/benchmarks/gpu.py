"""LoRA training of a Llama-3.1-8B-shaped model on one accelerator, beside Hugging Face PEFT's.

``python -m tests.benchmarks.gpu [--longest] [--json] [--output FILE]``. Random weights in bf16, rank 16 on
every projection, the last tenth of each row scored. Each measurement runs in a child process of its own:
tokens a second (median after a warm-up), MFU by 4N, and the peak bytes that the device's allocator reports.
``--longest`` also looks for the longest row that trains, in bf16 and over an NF4 base. PEFT runs with sdpa
and gradient checkpointing. ``--model`` takes another shape of `shapes.SHAPES`, to try it on a CPU; ``--cases
1x116736 1x344064:nf4 --sides ours --updates 2`` asks whether these rows train.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks.turns import rows_and_tokens

CASES = ("2x4096", "1x16384")
GRAIN = 4096  # the longest row is found to within so many tokens
RANK, LEARNING_RATE, UPDATES = 16, 1e-4, 6
SIDES = ("ours", "peft")
PACKAGES = ("jax", "jaxlib", "torch", "transformers", "peft")


def measure(side: str, model: str, rows: int, length: int, quantization: str, updates: int) -> dict[str, Any]:
    """Train a few updates in this process."""
    run = _ours if side == "ours" else _peft
    seconds, losses, peak, flops = run(model, rows, length, quantization, updates)
    typical = statistics.median(seconds[1:])
    return {
        "losses": losses,
        "tokens_per_second": rows * length / typical,
        "mfu_4n": None if flops is None else flops / typical,
        "peak_memory": peak,
    }


def _scored(length: int) -> int:
    return max(1, length // 10)


def _ours(model: str, rows: int, length: int, quantization: str, updates: int) -> tuple[Any, ...]:
    from jora_tasks.trainer.distributed import initialize

    initialize()  # takes the GPU's memory, as training does
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jora_tasks.spec import LoraConfig, TrainConfig
    from jora_tasks.trainer.batches import Batches
    from jora_tasks.trainer.data import Dataset, Example
    from jora_tasks.trainer.flops import peak_flops, step_flops
    from jora_tasks.trainer.lora import init_lora
    from jora_tasks.trainer.model import LanguageModel
    from jora_tasks.trainer.optimizer import init_optimizer
    from jora_tasks.trainer.shapes import shape_of
    from jora_tasks.trainer.step import compile_step, place_batch

    config, lora_config = shape_of(model), LoraConfig(r=RANK)
    base = random_base(config, quantization)
    lora = init_lora(config, lora_config, jax.random.key(1))
    loaded = LanguageModel(config=config, base=base, lora=lora, lora_config=lora_config)
    training = TrainConfig(batch_size=rows, learning_rate=LEARNING_RATE, warmup_ratio=0.0)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (rows, length))
    prompt = length - _scored(length)
    dataset = Dataset(tuple(Example.make(str(i), row, prompt_length=prompt) for i, row in enumerate(tokens)))
    batches = Batches(dataset, rows, 1, 0)
    batch = place_batch(batches.arrays(batches.epoch(0)[0]), None)
    opt_state = init_optimizer(loaded, training, 10**6)
    step = compile_step(loaded, training, 10**6, opt_state, batch)
    losses, seconds = [], []
    for number in range(updates):
        started = time.perf_counter()
        lora, opt_state, metrics = step(lora, opt_state, base, batch, jnp.int32(number))
        losses.append(float(metrics["loss"]))
        seconds.append(time.perf_counter() - started)
    device = jax.devices()[0]
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    highest = peak_flops([device])
    flops = step_flops(config, lora_config, [length] * rows, _scored(length) * rows)
    return seconds, losses, peak, None if highest is None else flops / highest


def random_base(config: Any, quantization: str) -> Any:
    """Weights of a model's shape, made on the device an array at a time."""
    import jax
    import jax.numpy as jnp

    from jora_tasks.trainer.load import abstract_base

    def make(number: int, struct: Any) -> Any:
        key = jax.random.key(number)
        if struct.dtype == jnp.uint8:
            return jax.random.bits(key, struct.shape, jnp.uint8)
        if struct.dtype == jnp.float32:  # a quantised weight's scales
            return jnp.full(struct.shape, 1e-4, jnp.float32)
        if (
            struct.shape[-1] == config.hidden_size
            and len(struct.shape) < 3
            and struct.shape[0] != config.vocab_size
        ):
            return jnp.ones(struct.shape, struct.dtype)  # norms
        return 0.02 * jax.random.normal(key, struct.shape, struct.dtype)

    leaves, tree = jax.tree.flatten(abstract_base(config, "bfloat16", quantization))
    return jax.tree.unflatten(
        tree, [jax.jit(make, static_argnums=(0, 1))(n, struct) for n, struct in enumerate(leaves)]
    )


def _peft(model: str, rows: int, length: int, quantization: str, updates: int) -> tuple[Any, ...]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from jora_tasks.spec import PROJECTIONS
    from jora_tasks.trainer.shapes import SHAPES

    if quantization != "none":
        raise SystemExit("PEFT's side is measured in bf16 only")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = dict(SHAPES[model])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(0)
    with device:
        base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    targets = [name for name in PROJECTIONS if any(part.endswith(name) for part, _ in base.named_modules())]
    tuned = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=32, target_modules=targets))
    tuned.enable_input_require_grads()
    tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tuned.train()
    optimizer = torch.optim.AdamW(
        [each for each in tuned.parameters() if each.requires_grad], lr=LEARNING_RATE
    )
    ids = torch.randint(0, config.vocab_size, (rows, length), device=device)
    labels = ids.clone()
    labels[:, : length - _scored(length)] = -100
    losses, seconds = [], []
    for _ in range(updates):
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = tuned(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return seconds, losses, peak, None


def in_child(
    side: str, model: str, rows: int, length: int, quantization: str, updates: int
) -> dict[str, Any]:
    """`measure` in a process of its own; {"error"} where it fails, as without memory."""
    arguments = map(str, (side, model, rows, length, quantization, updates))
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"error": " ".join(done.stderr.split())[-300:]}
    return json.loads(done.stdout.splitlines()[-1])


def longest(side: str, model: str, quantization: str) -> int:
    """Tokens of the longest row that trains, to within `GRAIN`."""

    def trains(blocks: int) -> bool:
        return "error" not in in_child(side, model, 1, blocks * GRAIN, quantization, 2)

    low, high = 0, 1
    while trains(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if trains(middle) else (low, middle)
    return low * GRAIN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")
    parser.add_argument("--output", type=Path, help="write the results here as well")
    parser.add_argument("--model", default="llama-3.1-8b", help="a known shape (default llama-3.1-8b)")
    parser.add_argument("--longest", action="store_true", help="look for the longest row that trains")
    parser.add_argument(
        "--cases", nargs="+", type=_case, metavar="ROWSxTOKENS[:nf4]", help="others, as in 2x4096"
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="whom to measure")
    parser.add_argument("--updates", type=int, default=UPDATES, help=f"of each case (default {UPDATES})")
    parser.add_argument("--child", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        side, model, rows, length, quantization, updates = arguments.child
        print(json.dumps(measure(side, model, int(rows), int(length), quantization, int(updates))))
        return
    cases = arguments.cases or [_case(text) for text in CASES]
    result: dict[str, Any] = {
        "command": " ".join(["python -m tests.benchmarks.gpu", *sys.argv[1:]]),
        "device": _device(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "model": arguments.model,
        "cases": [
            {"rows": rows, "tokens": length, "quantization": kind}
            | {
                side: in_child(side, arguments.model, rows, length, kind, arguments.updates)
                for side in arguments.sides
                if side == "ours" or kind == "none"
            }
            for rows, length, kind in cases
        ],
    }
    if arguments.longest:
        found = (("ours", "none"), ("ours", "nf4"), ("peft", "none"))
        result["longest"] = {f"{side} {kind}": longest(side, arguments.model, kind) for side, kind in found}
    text = json.dumps(result, indent=None if arguments.json else 2)
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n")


def _case(text: str) -> tuple[int, int, str]:
    """Rows, tokens of each and how the base is quantised."""
    sizes, _, kind = text.partition(":")
    return (*rows_and_tokens(sizes), kind or "none")


def _device() -> str:
    """The device's kind, asked in a child, so that this process holds none of its memory."""
    question = "import jax; print(jax.devices()[0].device_kind)"
    done = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
