"""Embedding beside plain `SentenceTransformer.encode`, on passages of mixed lengths.

    python -m tests.benchmarks.embedding [--texts 1000] [--threads 2] [--int8]

Real text (CPython's language topics) in the demo's embedder. Both run in turns, `--rounds` times; prints one
JSON object: texts a second (medians over rounds), their ratio, and the least cosine between the vectors.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jora_tasks.models import embedder_folder
from jora_tasks.spec import DEFAULT_EMBEDDER
from retrieval.embedding import Embedder


def passages(count: int) -> list[str]:
    """Passages of 4 to 170 words, evenly mixed: up to about the 256 tokens that the embedder reads."""
    from pydoc_data.topics import topics

    words = " ".join(topics.values()).split()
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 171, size=count)
    starts = rng.integers(0, len(words) - 171, size=count)
    return [" ".join(words[a : a + n]) for a, n in zip(starts, lengths, strict=True)]


def main() -> None:
    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--int8", action="store_true", help="as well the onnx_int8 backend")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    texts = passages(options.texts)
    with tempfile.TemporaryDirectory() as cache:
        folder = embedder_folder(DEFAULT_EMBEDDER, Path(cache))
        ours = Embedder(folder, "embedder", "sha256:benchmark")
        model = ours.model
        runs: dict[str, Callable[[], np.ndarray]] = {
            "sentence_transformers": lambda: model.encode(
                texts, normalize_embeddings=True, show_progress_bar=False
            ),
            "ours": lambda: ours.embed_texts(texts),
        }
        if options.int8:
            int8 = Embedder(
                folder, "embedder", "sha256:benchmark", backend="onnx_int8", cache_folder=Path(cache)
            )
            int8.embed_texts(texts[:1])  # exports the model
            runs["ours_int8"] = lambda: int8.embed_texts(texts)
        for run in runs.values():
            run()  # warm
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        vectors = {}
        for _ in range(options.rounds):
            for name, run in runs.items():
                started = time.perf_counter()
                vectors[name] = run()
                seconds[name].append(time.perf_counter() - started)
    rate = {name: round(len(texts) / statistics.median(each), 2) for name, each in seconds.items()}
    plain = vectors["sentence_transformers"]
    cosine = {name: np.einsum("nd,nd->n", plain, each) for name, each in vectors.items()}
    told = {
        "texts": len(texts),
        "threads": options.threads,
        "texts_per_second": rate,
        "ratio": {name: round(each / rate["sentence_transformers"], 2) for name, each in rate.items()},
        "least_cosine": {name: round(float(each.min()), 6) for name, each in cosine.items()},
        "mean_cosine": {name: round(float(each.mean()), 6) for name, each in cosine.items()},
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
