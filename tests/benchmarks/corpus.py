"""How long a corpus takes, and how much memory, with documents generated for it.

``python -m tests.benchmarks.corpus [--json] [--documents N] [--pdfs N]``. Documents of about 3,000 characters
are written to the temporary folder: as files (Markdown, text and HTML in turn), as rows of a JSONL file, and
some as PDFs of two pages. Each kind is built in a child process, then again with one document changed, and
with none. ``cpu_seconds`` is the process's own time; ``peak_mb`` is the most resident memory of the process,
``beyond_mb`` that less what it held before (10⁶ bytes).
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.retrieval.loaders.office import pdf

WORDS = 500
SUFFIXES = (".md", ".txt", ".html")


def text_of(number: int, vocabulary: list[str]) -> str:
    words = random.Random(number).choices(vocabulary, k=WORDS)
    return "\n\n".join(" ".join(words[start : start + 50]) for start in range(0, WORDS, 50))


def vocabulary() -> list[str]:
    dice = random.Random(0)
    return ["".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=dice.randint(2, 8))) for _ in range(20_000)]


def write_files(folder: Path, count: int) -> Path:
    words = vocabulary()
    for number in range(count):
        if number % 1000 == 0:
            (folder / f"{number // 1000:03}").mkdir(parents=True)
        suffix, text = SUFFIXES[number % 3], text_of(number, words)
        if suffix == ".md":
            text = f"# Document {number}\n\n{text}\n"
        elif suffix == ".html":
            body = text.replace("\n\n", "</p>\n<p>")
            text = (
                f"<html><head><title>Document {number}</title></head><body><nav>Menu</nav>"
                f"<main><h1>Document {number}</h1><p>{body}</p></main><footer>Legal</footer></body></html>"
            )
        (folder / f"{number // 1000:03}" / f"{number}{suffix}").write_text(text)
    return folder / "000" / "0.md"


def write_rows(folder: Path, count: int) -> Path:
    folder.mkdir()
    words = vocabulary()
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(count):
            row = {"id": f"row-{number}", "text": text_of(number, words), "metadata": {"number": number}}
            file.write(json.dumps(row) + "\n")
    return folder / "rows.jsonl"


def write_pdfs(folder: Path, count: int) -> Path:
    folder.mkdir()
    words = vocabulary()
    for number in range(count):
        lines = text_of(number, words).split("\n\n")
        pages = ("\\n".join(lines[:5]), "\\n".join(lines[5:]))
        (folder / f"{number}.pdf").write_bytes(pdf(*pages, title=f"Document {number}"))
    return folder / "0.pdf"


def change(file: Path) -> None:
    """Another word in the first document."""
    with file.open("r+b") as opened:
        place = opened.read(3000).index(b" a") + 1
        opened.seek(place)
        opened.write(b"e")


def measure(documents: str, home: str) -> dict[str, Any]:
    """Build once in this process."""
    import pyarrow.parquet  # noqa: F401 (so that it counts as held before)

    from jora_tasks.artifacts import ArtifactStore
    from jora_tasks.progress import Progress
    from jora_tasks.spec import parse_spec
    from jora_tasks.stages.corpus import build_corpus

    held = peak()
    store, started, used = ArtifactStore(home), time.monotonic(), time.process_time()
    corpus = build_corpus(parse_spec({"documents": {"path": documents}}), store, Progress())
    seconds, cpu = time.monotonic() - started, time.process_time() - used
    store.set_latest("documents", corpus)
    counts = {name: corpus.counts[name] for name in ("documents", "added", "updated", "unchanged")}
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "peak_mb": round(peak()),
        "beyond_mb": round(peak() - held),
        **counts,
        "characters": corpus.counts["characters"],
    }


def peak() -> float:
    # not ru_maxrss, which begins with the memory of the process that started this one
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--pdfs", type=int, default=1000)
    parser.add_argument("--measure", nargs=2)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        plans = (
            ("files", write_files, options.documents),
            ("rows", write_rows, options.documents),
            ("pdfs", write_pdfs, options.pdfs),
        )
        for kind, write, count in plans:
            folder, home = Path(temporary, kind), Path(temporary, f"{kind}-home")
            first = write(folder, count)
            for state in ("full", "one changed", "unchanged"):
                if state == "one changed":
                    change(first)
                command = [sys.executable, "-m", "tests.benchmarks.corpus", "--measure", folder, home]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                results[f"{kind}, {state}"] = figures = json.loads(out)
                if not options.json:
                    print(f"{kind}, {state}: {figures}", flush=True)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
