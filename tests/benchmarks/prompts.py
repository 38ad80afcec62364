"""One prompt at the largest budget: ``python -m tests.benchmarks.prompts``.

1,000 chunks of generated text are packed into 131,072 tokens of the demo's base model, as a training prompt
(shuffled, the last chunks dropped), and the same with the tokenizer alone, which reads the whole text once.
"""

from __future__ import annotations

import json
import random
import time

from jora_tasks.artifacts import jora_home
from jora_tasks.models import base_model_folder
from jora_tasks.prompting.packing import Packer
from jora_tasks.prompting.passages import Passage
from jora_tasks.spec import DEFAULT_BASE_MODEL
from jora_tasks.trainer.tokenizer import load_tokenizer

BUDGET, CHUNKS, WORDS = 131_072, 1_000, 110


def main() -> None:
    tokenizer = load_tokenizer(base_model_folder(DEFAULT_BASE_MODEL, jora_home()))
    generator = random.Random(0)
    vocabulary = [
        "option",
        "section",
        "default",
        "value",
        "worker",
        "scheduler",
        "2.10.3",
        "(see",
        "docs)",
        "is",
    ]
    passages = [
        Passage(f"c{i}", "d", 0, 1, "Guide › Part", " ".join(generator.choices(vocabulary, k=WORDS)), i == 0)
        for i in range(CHUNKS)
    ]

    def shuffled(chosen: list[Passage]) -> list[Passage]:
        return random.Random(1).sample(chosen, len(chosen))

    started = time.perf_counter()
    prompt = Packer(tokenizer, BUDGET).pack("What is it?", "Answer.", passages, lambda _: "5", shuffled)
    packed = time.perf_counter() - started
    started = time.perf_counter()
    tokenizer.encode("\n\n".join(each.text for each in passages))
    read = time.perf_counter() - started
    print(
        json.dumps(
            {
                "tokens": len(prompt.input_ids),
                "chunks": len(prompt.passages),
                "dropped": len(prompt.dropped),
                "seconds": round(packed, 2),
                "seconds_of_tokenising_once": round(read, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
