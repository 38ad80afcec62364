"""A small chain of real artifacts, from documents to an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jora_tasks.artifacts import Artifact, ArtifactStore, Input, Source
from jora_tasks.digests import digest_json

DOCUMENTS = [{"document_id": f"guide/{i:02}.md", "digest": f"sha256:{i:064x}"} for i in range(12)]


def build(
    store: ArtifactStore,
    kind: str,
    inputs: dict[str, Input],
    table: str | None = None,
    rows: list[dict[str, Any]] | None = None,
    **settings: Any,
) -> Artifact:
    def write(folder: Path) -> dict[str, Any]:
        if table:
            pq.write_table(pa.Table.from_pylist(rows or [{"x": 1}, {"x": 2}]), folder / table)
        else:
            (folder / "adapter_config.json").write_text("{}")
        return {"rows": len(rows or [])}

    return store.build(
        kind,
        version=1,
        settings=settings,
        inputs=inputs,
        write=write,
        provenance={"airflow_run": f"dag/{kind}"},
    )


def make_adapter(
    store: ArtifactStore, documents: list[dict[str, Any]] = DOCUMENTS, begun_from: Artifact | None = None
) -> Artifact:
    source = Source("documents", "guide", digest_json(documents))
    corpus = build(store, "corpus", {"documents": source}, "documents.parquet", documents)
    index = build(store, "index", {"corpus": corpus}, "chunks.parquet", chunk_tokens=200)
    contexts = build(
        store,
        "contexts",
        {"index": index, "corpus": corpus, "questions": Source("questions", "q.jsonl", "sha256:q")},
        "contexts.parquet",
        documents,
    )
    prompts = build(store, "prompts", {"contexts": contexts}, "prompts.parquet", documents, seed=3)
    inputs: dict[str, Input] = {"prompts": prompts, "base_model": Source("model", "tiny-base", "sha256:b")}
    if begun_from is not None:
        inputs["init_from"] = begun_from
    return build(store, "adapter", inputs, training={"seed": 7, "epochs": 2})
