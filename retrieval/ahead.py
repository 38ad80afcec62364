"""What models made of questions ahead of a search: their vectors, and the reranker's scores."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np


class QuestionEmbedder(Protocol):
    def embed_questions(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of questions, float32 [N, D]."""
        ...


class PassageScorer(Protocol):
    def scores(self, question: str, passages: Sequence[str], batch_size: int) -> np.ndarray:
        """How well each passage answers the question, float32 [N]."""
        ...


class Ahead:
    """Vectors and scores by question. What is not there is computed, and kept.

    Scores are those of passages read together, in their order, and count for no others: a passage's last
    digits depend on what it is read beside. So a search ends as if nothing had been made ahead of it.
    """

    def __init__(self) -> None:
        self._vectors: dict[str, np.ndarray] = {}
        self._scores: dict[str, tuple[bytes, np.ndarray]] = {}

    def embedder(self, embedder: QuestionEmbedder) -> QuestionEmbedder:
        """The embedder, asked only for what is not there."""
        return _Embedder(embedder, self._vectors)

    def reranker(self, reranker: PassageScorer) -> PassageScorer:
        """The reranker, asked only for what is not there."""
        return _Reranker(reranker, self._scores)

    def write(self, file: Path, questions: Sequence[str]) -> int:
        """Write what there is of these questions as parquet, a row each; returns how many it wrote."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        numbers = pa.list_(pa.float32())
        schema = pa.schema(
            [("question", pa.string()), ("vector", numbers), ("passages", pa.binary()), ("scores", numbers)]
        )
        rows = []
        for question in dict.fromkeys(questions):
            passages, scores = self._scores.get(question, (None, None))
            vector = self._vectors.get(question)
            rows.append({"question": question, "vector": vector, "passages": passages, "scores": scores})
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
        return len(rows)

    def read(self, file: Path) -> None:
        """Add what `write` wrote."""
        import pyarrow.parquet as pq

        for row in pq.read_table(file).to_pylist():
            if row["vector"] is not None:
                self._vectors[row["question"]] = np.array(row["vector"], np.float32)
            if row["scores"] is not None:
                self._scores[row["question"]] = row["passages"], np.array(row["scores"], np.float32)


class _Embedder:
    def __init__(self, embedder: QuestionEmbedder, known: dict[str, np.ndarray]) -> None:
        self._embedder, self._known = embedder, known

    def embed_questions(self, texts: Sequence[str]) -> np.ndarray:
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        if new:
            self._known.update(zip(new, self._embedder.embed_questions(new), strict=True))
        return np.stack([self._known[text] for text in texts])


class _Reranker:
    def __init__(self, reranker: PassageScorer, known: dict[str, tuple[bytes, np.ndarray]]) -> None:
        self._reranker, self._known = reranker, known

    def scores(self, question: str, passages: Sequence[str], batch_size: int) -> np.ndarray:
        digest = _digest(passages)
        if self._known.get(question, (b"",))[0] != digest:
            self._known[question] = digest, self._reranker.scores(question, passages, batch_size)
        return self._known[question][1]


def _digest(passages: Sequence[str]) -> bytes:
    each = (hashlib.sha256(passage.encode("utf-8", "surrogatepass")).digest() for passage in passages)
    return hashlib.sha256(b"".join(each)).digest()
