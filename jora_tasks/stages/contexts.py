"""Index and questions → contexts: the best chunks for every question, and how good retrieval is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.progress import Progress
from jora_tasks.spec import RunSpec
from jora_tasks.stages.canary import read_canaries
from jora_tasks.stages.judging import find_judge
from jora_tasks.stages.retrieve import made_ahead
from jora_tasks.stages.retrieving import read_split_questions, settle
from jora_tasks.stages.searching import Asked, find_reranker

if TYPE_CHECKING:
    from retrieval.labels import Missing
    from retrieval.search import Found, Ranking

VERSION = 5
CONTEXTS, MISSING = "contexts.parquet", "missing_evidence.jsonl"


def retrieve_contexts(spec: RunSpec, index: Artifact, store: ArtifactStore, progress: Progress) -> Artifact:
    """Search the index for every question, as ``retrieval`` says.

    The artifact holds ``contexts.parquet``, one row a question: its ``contexts`` are ranks 1 to
    ``retrieval.top_k``, its ``candidates`` the ranks after them up to ``retrieval.candidates``, of which
    training prompts may take distractors; those with the text of a chunk that holds evidence are
    ``relevant``; ``measures`` are those of its contexts, null where it has no evidence. Its counts hold

    - ``questions`` by split, ``with_evidence``, and ``evidence_missing``: how many pieces of evidence the
      documents no longer have; ``missing_evidence.jsonl`` lists them;
    - ``measures``, their means by split, and ``recall_at_k`` of the test questions by k;
    - ``retriever``: mode, weight of dense search and why, see `jora_tasks.evaluation.retriever_choice`;
    - ``near_duplicates`` left out, questions ``without_result``, ``distinct_rankings``, and a ``warning`` if
      there is just one of these.

    Raises:
      InputError: for a malformed questions file, one without train or test questions, an index
        that another embedder built, filters that no chunk passes, or by option evidence that the
        documents no longer have.
    """
    retrieving = settle(spec, index, store)

    def write(target: Path) -> Mapping[str, Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from retrieval.search import mode_of

        search = retrieving.search(made_ahead(retrieving))
        write_missing(search.missing, target)
        asked, total = search.asked, len(search.asked)
        rankings = search.rankings(
            asked, lambda done: progress("contexts", done=done, total=total, unit="questions")
        )
        rows, near_duplicates = [], 0
        for each, ranking in zip(asked, rankings, strict=True):
            near_duplicates += ranking.near_duplicates
            rows.append(_row(each, ranking, spec.retrieval.top_k))
        pq.write_table(pa.Table.from_pylist(rows, schema=contexts_schema()), target / CONTEXTS)
        return {
            **_counts(rows, len(search.searcher.index.chunks)),
            "evidence_missing": len(search.missing),
            "retriever": {"mode": mode_of(search.weight), "dense_weight": search.weight, **search.why},
            "near_duplicates": near_duplicates,
        }

    return store.build(
        "contexts",
        version=VERSION,
        settings=retrieving.settings(),
        inputs=retrieving.inputs(),
        write=write,
    )


def check_inputs(spec: RunSpec, store: ArtifactStore) -> None:
    """Refuse files and models that `retrieve_contexts` would, before there is an index."""
    read_split_questions(spec)
    read_canaries(spec)
    find_judge(spec, spec.prompts.cite, store)
    find_reranker(spec, store)


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
            ("relevant", pa.bool_()),
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
            ("measures", pa.map_(pa.string(), pa.float64())),
        ]
    )


def _row(asked: Asked, ranking: Ranking, top_k: int) -> dict[str, Any]:
    from retrieval.measures import measure

    question = asked.question
    contexts = [_context(found, asked) for found in ranking.found]
    ranked = [context["text"] for context in contexts]
    return {
        "question_id": question.id,
        "question": question.question,
        "answers": list(question.answers),
        "split": question.split,
        "group": question.group,
        "evidence": [vars(span) for span in asked.evidence],
        "contexts": contexts[:top_k],
        "candidates": contexts[top_k:],
        "measures": measure(ranked, asked.relevant, top_k) if asked.relevant else None,
    }


def _context(found: Found, asked: Asked) -> dict[str, Any]:
    chunk = found.chunk
    return {
        "chunk_id": chunk.id,
        "document_id": chunk.document_id,
        "start": chunk.start,
        "end": chunk.end,
        "heading": chunk.heading,
        "text": chunk.text,
        "rank": found.rank,
        "score": found.score,
        "relevant": chunk.text in asked.relevant,
    }


def _counts(rows: Sequence[Mapping[str, Any]], chunks: int) -> dict[str, Any]:
    from retrieval.questions import SPLITS

    measures = {split: _means([row for row in rows if row["split"] == split]) for split in SPLITS}
    recall = {name.removeprefix("recall@"): value for name, value in measures["test"].items()}
    found = [tuple(context["chunk_id"] for context in row["contexts"]) for row in rows]
    counts = {
        "questions": {split: sum(row["split"] == split for row in rows) for split in SPLITS},
        "with_evidence": sum(bool(row["evidence"]) for row in rows),
        "recall_at_k": {k: value for k, value in recall.items() if k.isdecimal()},
        "measures": measures,
        "without_result": found.count(()),
        "distinct_rankings": len(set(found)),
    }
    if len(rows) > 1 and len(set(found)) == 1 and chunks > len(found[0]):
        counts["warning"] = (
            "every question has the same contexts; look at the embedder, the questions and retrieval.filters"
        )
    return counts


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Measure → its mean over the questions that have evidence, those without a result among them."""
    known = [row["measures"] for row in rows if row["measures"] is not None]
    return {name: sum(each[name] for each in known) / len(known) for name in known[0]} if known else {}
