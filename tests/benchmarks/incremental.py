"""What one changed document costs, and what a large corpus takes in memory.

    python -m tests.benchmarks.incremental [--documents 10000] [--words 200]
    python -m tests.benchmarks.incremental --memory [--documents 100000] [--words 15]

The first builds an index of generated documents with the demo's embedder, changes one of them and builds
it again, each in a process of its own. It tells wall and CPU seconds of each build and their ratios, without
and with the process's start-up: Python and the import of the libraries, which no change makes shorter. The
second builds an index with a random model of one small layer, so that it ends in minutes, and measures the
process's peak memory above the vectors'. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.tiny import write_tiny_embedder

MEASURED = """
import json, resource, sys, time
if sys.argv[1] == "index":
    import faiss, sentence_transformers
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.progress import LineSink, Progress
from jora_tasks.spec import load_spec
from jora_tasks.stages.pipeline import run_stage
wall, cpu = time.monotonic(), time.process_time()
result = run_stage(sys.argv[1], load_spec(sys.argv[2]), ArtifactStore(), Progress(LineSink(interval=30)))
seconds = {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"counts": result["counts"], "seconds": seconds, "peak": peak}))
"""


def write(file: Path, count: int, words: int, changed: int | None = None) -> None:
    """Generated documents as JSONL, each with words of its own."""
    from pydoc_data.topics import topics

    vocabulary = sorted({word for text in topics.values() for word in text.split() if word.isalpha()})
    with file.open("w") as lines:
        for number in range(count):
            rng = np.random.default_rng([number, number == changed])
            text = " ".join(vocabulary[i] for i in rng.integers(len(vocabulary), size=words))
            lines.write(json.dumps({"id": f"{number:06}", "title": f"Note {number}", "text": text}) + "\n")


def stage(name: str, spec: Path) -> dict:
    """Run a stage in a process of its own; ``whole`` are the process's seconds."""
    wall, cpu = time.monotonic(), _cpu_of_children()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, name, str(spec)], stdout=subprocess.PIPE, check=True
    )
    whole = {"wall": time.monotonic() - wall, "cpu": _cpu_of_children() - cpu}
    return json.loads(done.stdout.splitlines()[-1]) | {"whole": whole}


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int)
    parser.add_argument("--words", type=int)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    count = options.documents or (100_000 if options.memory else 10_000)
    words = options.words or (15 if options.memory else 200)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["JORA_HOME"] = str(folder / "home")
        (folder / "documents").mkdir()
        settings: dict = {"documents": {"path": str(folder / "documents")}}
        if options.memory:
            embedder = write_tiny_embedder(folder / "embedder", seed=0)
            settings["index"] = {"embedder": str(embedder), "chunk_tokens": 60, "batch_tokens": 65536}
        spec = folder / "spec.yaml"
        spec.write_text(json.dumps(settings))
        write(folder / "documents" / "notes.jsonl", count, words)
        corpus, full = stage("corpus", spec), stage("index", spec)
        told = {"documents": count, "words": words, "chunks": full["counts"]["chunks"]}
        if options.memory:
            vectors = full["counts"]["chunks"] * full["counts"]["dimension"] * 4
            told |= {
                "seconds": {
                    "corpus": round(corpus["seconds"]["wall"], 1),
                    "index": round(full["seconds"]["wall"], 1),
                },
                "vectors_bytes": vectors,
                "peak_bytes": {"corpus": corpus["peak"], "index": full["peak"]},
                "index_peak_above_vectors_gib": round((full["peak"] - vectors) / 2**30, 2),
            }
        else:
            write(folder / "documents" / "notes.jsonl", count, words, changed=count // 2)
            stage("corpus", spec)
            again = stage("index", spec)
            told |= {
                **{
                    f"{part}_{clock}": {
                        "full": round(full[part][clock], 1),
                        "again": round(again[part][clock], 1),
                        "ratio": round(again[part][clock] / full[part][clock], 4),
                    }
                    for part in ("seconds", "whole")
                    for clock in ("wall", "cpu")
                },
                "chunks_embedded": [full["counts"]["chunks_embedded"], again["counts"]["chunks_embedded"]],
            }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
