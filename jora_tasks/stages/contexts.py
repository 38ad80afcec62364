"""Index and questions → contexts: the best chunks for every question, and how good retrieval is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_tasks.artifacts import Artifact, ArtifactStore, Source, digest_file
from jora_tasks.progress import Progress
from jora_tasks.spec import RunSpec
from jora_tasks.stages.corpus import document_texts
from jora_tasks.stages.index import find_embedder

if TYPE_CHECKING:
    from retrieval.chunking import Chunk
    from retrieval.index import Hit
    from retrieval.labels import Missing

VERSION = 2
CONTEXTS, MISSING = "contexts.parquet", "missing_evidence.jsonl"


def retrieve_contexts(spec: RunSpec, index: Artifact, store: ArtifactStore, progress: Progress) -> Artifact:
    """Retrieve ``retrieval.top_k`` chunks for every question.

    The artifact holds ``contexts.parquet``, one row a question: its ``contexts`` are ranks 1 to
    ``retrieval.top_k``, its ``candidates`` the ranks after them up to ``retrieval.candidates``, of which
    training prompts may take distractors. Its counts hold
    ``questions`` by split, ``recall_at_k`` of the test questions with evidence (and of every split),
    and ``evidence_missing``: how many pieces of evidence the documents no longer have;
    ``missing_evidence.jsonl`` lists them.

    Raises:
      InputError: for a malformed questions file, one without train or test questions, an index
        that another embedder built, or by option evidence that the documents no longer have.
    """
    from retrieval.index import check_embedder
    from retrieval.questions import SPLITS, read_questions
    from retrieval.splits import check_splits, split_questions

    folder, embedder_source = find_embedder(spec, store)
    check_embedder(index.path, embedder_source.name, embedder_source.digest)
    path = Path(spec.questions.path)
    settings = spec.questions
    questions = split_questions(
        read_questions(path, settings.group_field),
        settings.dev_fraction,
        settings.test_fraction,
        settings.split_by,
    )
    check_splits(questions, path)
    source = Source("questions", path.name, digest_file(path))

    def write(target: Path) -> Mapping[str, Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from retrieval.embedding import Embedder
        from retrieval.index import Index
        from retrieval.labels import with_evidence

        opened = Index(index.path)
        embedder = Embedder(folder, embedder_source.name, embedder_source.digest)
        texts = document_texts(store.get("corpus", index.manifest["inputs"]["corpus"]["key"]))
        asked, missing = with_evidence(questions, texts, settings.missing_evidence)
        write_missing(missing, target)
        vectors = embedder.embed_questions(
            [question.question for question, _ in asked],
            spec.index.batch_size,
            lambda done: progress("contexts", done=done, total=len(asked), unit="questions"),
        )
        rows = []
        top_k = spec.retrieval.top_k
        found = opened.search(vectors, max(top_k, spec.retrieval.candidates))
        for (question, spans), hits in zip(asked, found, strict=True):
            rows.append(
                {
                    "question_id": question.id,
                    "question": question.question,
                    "answers": list(question.answers),
                    "split": question.split,
                    "group": question.group,
                    "evidence": [vars(span) for span in spans],
                    "contexts": [_context(hit) for hit in hits[:top_k]],
                    "candidates": [_context(hit) for hit in hits[top_k:]],
                }
            )
        pq.write_table(pa.Table.from_pylist(rows, schema=contexts_schema()), target / CONTEXTS)
        recall = _recall(rows, opened.chunks, top_k)
        return {
            "questions": {split: sum(row["split"] == split for row in rows) for split in SPLITS},
            "with_evidence": sum(bool(row["evidence"]) for row in rows),
            "evidence_missing": len(missing),
            "recall_at_k": recall["test"],
            "recall_at_k_by_split": recall,
        }

    return store.build(
        "contexts",
        version=VERSION,
        settings={
            **spec.retrieval.model_dump(mode="json"),
            **settings.making(),
        },
        inputs={"index": index, "questions": source},
        write=write,
    )


def write_missing(missing: list[Missing], folder: Path) -> None:
    """List evidence that is gone in ``missing_evidence.jsonl``, a row each; no file where there is none."""
    if missing:
        rows = [{"question_id": each.question_id, **vars(each.evidence)} for each in missing]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / MISSING).write_text(lines, encoding="utf-8")


def contexts_schema() -> Any:
    """Columns of ``contexts.parquet``."""
    import pyarrow as pa

    span = [("document_id", pa.string()), ("start", pa.int64()), ("end", pa.int64())]
    context = pa.struct(
        [
            ("chunk_id", pa.string()),
            *span,
            ("heading", pa.string()),
            ("text", pa.string()),
            ("rank", pa.int32()),
            ("score", pa.float32()),
        ]
    )
    return pa.schema(
        [
            ("question_id", pa.string()),
            ("question", pa.string()),
            ("answers", pa.list_(pa.string())),
            ("split", pa.string()),
            ("group", pa.string()),
            ("evidence", pa.list_(pa.struct(span))),
            ("contexts", pa.list_(context)),
            ("candidates", pa.list_(context)),
        ]
    )


def _context(hit: Hit) -> dict[str, Any]:
    chunk = hit.chunk
    return {
        "chunk_id": chunk.id,
        "document_id": chunk.document_id,
        "start": chunk.start,
        "end": chunk.end,
        "heading": chunk.heading,
        "text": chunk.text,
        "rank": hit.rank,
        "score": hit.score,
    }


def _recall(rows: list[dict[str, Any]], chunks: list[Chunk], top_k: int) -> dict[str, dict[str, float]]:
    """Split → k → mean recall over its questions with evidence; k is 1 and ``top_k``."""
    from retrieval.evidence import Span, by_document, relevant_chunks
    from retrieval.measures import mean, recall_at
    from retrieval.questions import SPLITS

    chunks_of = by_document(chunks)
    scored: dict[str, dict[int, list[float]]] = {split: {1: [], top_k: []} for split in SPLITS}
    for row in rows:
        spans = [Span(**span) for span in row["evidence"]]
        relevant = [chunk.id for chunk in relevant_chunks(spans, chunks_of)]
        ranked = [context["chunk_id"] for context in row["contexts"]]
        if relevant:
            for k, values in scored[row["split"]].items():
                values.append(recall_at(ranked, relevant, k))
    return {
        split: {str(k): value for k, values in each.items() if (value := mean(values)) is not None}
        for split, each in scored.items()
    }
