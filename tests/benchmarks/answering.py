"""Answers by our batched decoding beside Hugging Face transformers': the same weights, prompts and lengths.

``python -m tests.benchmarks.answering [--json]``. SmolLM2-135M in f32 reads batches of prompts and adds 32
tokens to each, greedily, on both sides; ours also takes the loss of a known answer of 16 tokens a prompt,
as an evaluation does. Each measurement runs in a child process of its own, the sides taking turns. A ratio
above 1 is in our favour.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from itertools import chain
from typing import Any

from tests.benchmarks.turns import in_turns

BATCH, LENGTH, NEW, KNOWN = 8, 448, 32, 16
SIDES = ("ours", "transformers")


def measure(side: str, model: str) -> dict[str, Any]:
    """Answer two batches in this process, the second timed: new tokens, and seconds."""
    import numpy as np

    draw = np.random.default_rng(0)
    batches = [draw.integers(0, 49000, (BATCH, LENGTH)).tolist() for _ in range(2)]
    known = draw.integers(0, 49000, (BATCH, KNOWN)).tolist()
    answer = _ours(model, known) if side == "ours" else _transformers(model)
    answer(batches[0])
    started = time.perf_counter()
    tokens = answer(batches[1])
    return {"tokens": tokens, "seconds": time.perf_counter() - started}


def _ours(model: str, known: list[list[int]]) -> Any:
    from jora_tasks.evaluation.generation import generate_and_score
    from jora_tasks.trainer.load import load_model

    loaded = load_model(model)
    settings: dict[str, Any] = {"max_new_tokens": NEW, "eos_ids": (), "pad_id": 0, "batch_size": BATCH}
    return lambda prompts: [each.tokens for each in generate_and_score(loaded, prompts, known, **settings)]


def _transformers(model: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    settings: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}

    def answer(prompts: list[list[int]]) -> list[list[int]]:
        ids = torch.tensor(prompts)
        out = loaded.generate(
            ids, attention_mask=torch.ones_like(ids), eos_token_id=None, pad_token_id=0, **settings
        )
        return out[:, LENGTH:].tolist()

    return answer


def compare(model: str, rounds: int) -> dict[str, Any]:
    """Both sides in turns; the best round of each counts, since noise only ever slows."""
    results = in_turns("tests.benchmarks.answering", SIDES, [model], rounds)
    seconds = {side: min(each["seconds"] for each in found) for side, found in results.items()}
    ours, theirs = (list(chain.from_iterable(results[side][0]["tokens"])) for side in SIDES)
    return {
        "case": f"{BATCH} prompts of {LENGTH} tokens, {NEW} new tokens each",
        "speed": seconds["transformers"] / seconds["ours"],
        "same_tokens": sum(one == other for one, other in zip(ours, theirs, strict=True)) / len(ours),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side (default 2)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if arguments.child:
        print(json.dumps(measure(*arguments.child)))
        return

    from jora_tasks.artifacts import jora_home
    from jora_tasks.models import base_model_folder
    from jora_tasks.spec import DEFAULT_BASE_MODEL

    found = compare(str(base_model_folder(DEFAULT_BASE_MODEL, jora_home())), arguments.rounds)
    if arguments.json:
        print(json.dumps(found))
        return
    sides = ", ".join(f"{side} {seconds:.1f} s" for side, seconds in found["seconds"].items())
    print(f"{found['case']}: {found['speed']:.2f}x the speed ({sides}), {found['same_tokens']:.1%} alike")


if __name__ == "__main__":
    main()
