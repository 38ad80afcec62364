"""Index types beside plain faiss Flat, on random clustered vectors.

    python -m tests.benchmarks.index_types [--vectors 1000000] [--types flat ivf_flat ivf_sq8]

Prints one JSON object a type: seconds to build, train and tune; bytes on disk; recall@10 of queries that
are none of the vectors, against exact search; queries a second, opened by memory map, one query at a time
and in a batch; beside `faiss.IndexFlatIP` in memory, in the same run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from retrieval.vectors import InMemory, build, open_index, search

D, K = 384, 10


def clustered(count: int, centres: int, seed: int) -> np.ndarray:
    """Unit vectors around random centres, float32 [count, D]: nearest ones share a centre, mostly."""
    middle = np.random.default_rng(0).normal(size=(centres, D)).astype(np.float32)
    rng = np.random.default_rng(seed)
    made = np.empty((count, D), np.float32)
    for first in range(0, count, 50_000):
        part = made[first : first + 50_000]
        rng.standard_normal(out=part, dtype=np.float32)
        part += middle[rng.integers(centres, size=len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return made


def rates(run: Callable[[np.ndarray], object], queries: np.ndarray) -> dict[str, float]:
    """Queries a second, one at a time and a hundred at a time."""
    told = {}
    for name, asked, size in (("single", queries[:50], 1), ("batched", queries, 100)):
        started = time.perf_counter()
        for first in range(0, len(asked), size):
            run(asked[first : first + size])
        told[name] = round(len(asked) / (time.perf_counter() - started), 1)
    return told


def measure_plain(vectors: np.ndarray, queries: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """`faiss.IndexFlatIP` in memory, and what it finds."""
    index = faiss.IndexFlatIP(D)
    started = time.perf_counter()
    index.add(vectors)
    seconds = time.perf_counter() - started
    told = {
        "type": "plain faiss IndexFlatIP",
        "vectors": len(vectors),
        "seconds": round(seconds, 1),
        "bytes": vectors.nbytes,
        "queries_per_second": rates(lambda part: index.search(part, K), queries),
    }
    return told, index.search(queries, K)[1]


def measure(
    kind: str, vectors: np.ndarray, queries: np.ndarray, exact: np.ndarray, target: float
) -> dict[str, Any]:
    """A type of ours: built, written, opened again and searched."""
    started = time.perf_counter()
    built = build(InMemory(vectors), D, kind, target, name="random")
    told = built.told()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "index.faiss"
        faiss.write_index(built.index, str(file))
        seconds = time.perf_counter() - started
        del built
        index = open_index(file)
        _, found = search(index, queries, K)
        hits = [len(set(a) & set(b)) / K for a, b in zip(found.tolist(), exact.tolist(), strict=True)]
        return {
            **told,
            "seconds": round(seconds, 1),
            "bytes": file.stat().st_size,
            "recall_at_10_of_new_queries": round(float(np.mean(hits)), 4),
            "queries_per_second": rates(lambda part: search(index, part, K), queries),
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--types", nargs="+", default=["flat", "ivf_flat", "ivf_sq8"])
    parser.add_argument("--recall-target", type=float, default=0.98)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    vectors = clustered(options.vectors, centres=max(1, options.vectors // 50), seed=1)
    queries = clustered(options.queries, centres=max(1, options.vectors // 50), seed=2)
    told, exact = measure_plain(vectors, queries)
    print(json.dumps(told), flush=True)
    for kind in options.types:
        print(json.dumps(measure(kind, vectors, queries, exact, options.recall_target)), flush=True)


if __name__ == "__main__":
    main()
