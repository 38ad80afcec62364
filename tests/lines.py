"""A line of adapters without any training: real artifacts and versions, with names that attack a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jora_tasks.artifacts import Artifact, ArtifactStore, Input, Source
from jora_tasks.registry import DIGEST, EVALUATION, EVALUATION_KEY, KEY, VERDICT_KEY, Registry

Write = Callable[[Path], None]

USERS = {"uma": "user", "ulf": "user", "vic": "viewer"}
"""Of the Airflow that shows the line: name → role."""
RUN = "adapter_training/manual__2026-01-01T00:00:00+00:00"
SCRIPT = "<script>alert(1)</script>"
HOSTILE_DOCUMENTS = (
    f"{SCRIPT}.md",
    '"><img src=x onerror=alert(2)>.md',
    "../../../etc/passwd",
    "javascript:alert(3)",
    "{{ 7 * 191 }}.md",
)
REPORT = f"<!doctype html><title>r</title><h1>Report</h1>{SCRIPT}"


def make_line(store: ArtifactStore, name: str = "tiny", versions: int = 3, documents: int = 120) -> None:
    """Register versions, each with the whole chain from the documents on; none becomes champion."""
    for number in range(1, versions + 1):
        adapter, evaluation, verdict = make_chain(store, number, documents, name)
        Registry(store.home).register(
            adapter.path,
            name,
            metrics=scores(number),
            tags={
                DIGEST: adapter.digest,
                KEY: adapter.key,
                EVALUATION: evaluation.digest,
                EVALUATION_KEY: evaluation.key,
                VERDICT_KEY: verdict.key,
            },
            params={},
            description=f"Version {number} {SCRIPT}",
        )


def scores(number: int) -> dict[str, float]:
    """Metrics as the registration logs them."""
    value = 0.4 + 0.1 * (number % 5)
    return {
        "adapter_with_contexts.exact_match": value,
        "adapter_with_contexts.exact_match.low": value - 0.1,
        "adapter_with_contexts.exact_match.high": value + 0.1,
        "base_with_contexts.exact_match": 0.35,
    }


def make_chain(
    store: ArtifactStore, number: int, documents: int, name: str
) -> tuple[Artifact, Artifact, Artifact]:
    """The adapter, evaluation and verdict of a version, and everything before them."""

    def build(
        kind: str, counts: Mapping[str, Any], write: Callable[[Path], None], **inputs: Input
    ) -> Artifact:
        def fill(folder: Path) -> Mapping[str, Any]:
            write(folder)
            return counts

        made = store.build(
            kind,
            version=1,
            settings={"number": number, "note": SCRIPT},
            inputs=inputs,
            write=fill,
            provenance={"airflow_run": RUN},
        )
        store.set_latest(name, made)
        return made

    def text(file: str, content: str) -> Write:
        return lambda folder: (folder / file).write_text(content) and None

    def source(kind: str, label: str) -> Source:
        return Source(kind, label, f"sha256:{kind}")

    corpus = build(
        "corpus",
        {"documents": documents, "added": documents},
        lambda folder: write_documents(folder / "documents.parquet", documents),
        documents=source("documents", f"folder {SCRIPT}"),
    )
    index = build("index", {"chunks": 1}, text("chunks", "c"), corpus=corpus)
    questions = {"questions": {"train": 8, "test": 6}}
    contexts = build(
        "contexts", questions, text("c", "c"), index=index, questions=source("questions", SCRIPT)
    )
    prompts = build("prompts", questions, text("p", "p"), contexts=contexts)
    steps = [{"step": step, "loss": 3 - step / 10, "learning_rate": 0.001} for step in range(1, 11)]
    adapter = build(
        "adapter",
        {"steps": 10, "final_loss": 2.0},
        text("metrics.jsonl", "".join(json.dumps(step) + "\n" for step in steps)),
        prompts=prompts,
        base_model=source("model", "base"),
    )
    evaluation = build(
        "evaluation",
        {"questions": 6, "exact_match": {"adapter_with_contexts": 0.5}},
        text("report.html", REPORT),
        adapter=adapter,
        prompts=prompts,
        base_model=source("model", "base"),
    )
    checks = [
        {"name": "enough_questions", "expected": "at least 1", "actual": "6", "passed": True},
        {"name": SCRIPT, "expected": SCRIPT, "actual": SCRIPT, "passed": number % 2 == 1},
    ]
    passed = all(check["passed"] for check in checks)
    judged = {"alias": "champion" if passed else "candidate", "passed": passed, "checks": checks}

    def write_verdict(folder: Path) -> None:
        (folder / "verdict.json").write_text(json.dumps(judged))
        (folder / "verdict.html").write_text(REPORT)

    failed = [check["name"] for check in checks if not check["passed"]]
    verdict = build("verdict", {"checks": 2, "failed": failed}, write_verdict, evaluation=evaluation)
    return adapter, evaluation, verdict


def write_documents(file: Path, count: int) -> None:
    """A corpus's table: `HOSTILE_DOCUMENTS`, then plain ones."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [*HOSTILE_DOCUMENTS, *(f"guide/{number:05}.md" for number in range(count))][:count]
    pq.write_table(
        pa.table(
            {
                "document_id": names,
                "title": [f"Title {SCRIPT}" if name in HOSTILE_DOCUMENTS else None for name in names],
                "digest": [f"sha256:{number:064x}" for number in range(count)],
            }
        ),
        file,
    )
