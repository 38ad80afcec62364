"""The one way to search an index: dense, lexical or both, filtered, without repetition, reranked.

Training, evaluation and `jora ask` all search here, so that each sees what the others saw.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jora_tasks.errors import InputError
from jora_tasks.spec import RetrievalConfig
from retrieval.ahead import PassageScorer, QuestionEmbedder
from retrieval.chunk_table import ChunkTable
from retrieval.chunking import Chunk
from retrieval.documents import normalise
from retrieval.fusion import fuse
from retrieval.index import Index
from retrieval.lexical import LexicalIndex
from retrieval.near_duplicates import distinct

DENSE, LEXICAL, FUSED, RERANKED = "dense", "lexical", "fused", "reranked"

# Each retriever is asked for at least so many chunks: fusion gains by what both have, even further down.
_SHALLOWEST = 100
_BLOCK = 256  # questions searched at once
_READ_AT_ONCE = 32  # chunks, while near-duplicates are left out
_RERANKED_AT_ONCE = 32

Scored = tuple[int, float]  # a chunk's row and its score


@dataclass(frozen=True)
class Place:
    """Where one step of the search has a chunk: rank from 1, and score."""

    rank: int
    score: float


@dataclass(frozen=True)
class Found:
    """A chunk found for a question.

    Attributes:
      row: of the chunk in the index.
      rank: from 1, in the end.
      score: what it was ranked by: the cosine (dense), BM25 (lexical), the fused score or the reranker's.
      places: its place in each step that was made, by ``dense``, ``lexical``, ``fused`` and ``reranked``.
    """

    row: int
    chunk: Chunk
    rank: int
    score: float
    places: Mapping[str, Place]


@dataclass(frozen=True)
class Ranking:
    """What is found for a question, best first, and how many near-duplicates were left out of it."""

    found: list[Found]
    near_duplicates: int


@dataclass(frozen=True)
class Explained:
    """A chunk that some step has among its first: its places there; its rank in the end, None if left out."""

    chunk: Chunk
    rank: int | None
    places: Mapping[str, Place]


@dataclass(frozen=True)
class Pool:
    """What each retriever finds for a question, best first; empty where it was not asked."""

    question: str
    dense: list[Scored]
    lexical: list[Scored]


def dense_weight_of(config: RetrievalConfig) -> float:
    """The weight of dense search that a mode other than ``auto`` means: 1 is dense, 0 lexical alone."""
    return {DENSE: 1.0, LEXICAL: 0.0, "hybrid": config.dense_weight}[config.mode]


def mode_of(dense_weight: float) -> str:
    """The mode that a weight of dense search means."""
    return {1.0: DENSE, 0.0: LEXICAL}.get(dense_weight, "hybrid")


def shown_text(chunk: Chunk) -> str:
    """A chunk as its readers get it: heading path, then text."""
    return f"{chunk.heading}\n{chunk.text}" if chunk.heading else chunk.text


class Searcher:
    """An index opened for search with the settings of a run."""

    def __init__(
        self,
        folder: Path,
        embedder: QuestionEmbedder,
        config: RetrievalConfig,
        reranker: PassageScorer | None = None,
    ) -> None:
        """Open an index.

        Args:
          folder: of the index.
          embedder: the one that built it.
          config: depth, filters, likeness of near-duplicates; its mode is not looked at.

        Raises:
          InputError: for an index whose parts do not belong together, or filters that no chunk passes.
        """
        self.index = Index(folder)
        self._lexical = LexicalIndex(folder, len(self.index.chunks))
        self._embedder, self._reranker = embedder, reranker
        self.config = config
        self._allowed = _allowed(self.index.chunks, config.filters)

    @property
    def depth(self) -> int:
        """Ranks kept for a question."""
        return max(self.config.top_k, self.config.candidates)

    def pools(
        self,
        questions: Sequence[str],
        dense_weights: Collection[float],
        done: Callable[[int], None] | None = None,
    ) -> Iterator[Pool]:
        """What the retrievers find that rankings of these weights need, in the order of the questions."""
        k = max(_SHALLOWEST, 2 * self.depth)  # near-duplicates are left out of it
        by_vectors, by_words = any(dense_weights), any(weight < 1 for weight in dense_weights)
        for first in range(0, len(questions), _BLOCK):
            block = questions[first : first + _BLOCK]
            dense: list[list[Scored]] = [[] for _ in block]
            if by_vectors:
                vectors = self._embedder.embed_questions(block)
                dense = self.index.search(vectors, k, self._allowed)
            for question, by_cosine in zip(block, dense, strict=True):
                lexical = self._lexical.search(question, k, self._allowed) if by_words else []
                yield Pool(question, by_cosine, lexical)
            if done:
                done(first + len(block))

    def rank(self, pool: Pool, dense_weight: float, *, rerank: bool = True) -> Ranking:
        """The ranking of a question: fused if both retrievers have a say, without near-duplicates, reranked.

        Args:
          pool: what the retrievers found, as `pools` gives it.
          dense_weight: 1 takes dense search alone, 0 lexical alone.
          rerank: False leaves the reranker out.
        """
        steps = {DENSE: pool.dense, LEXICAL: pool.lexical}
        if 0 < dense_weight < 1:
            steps[FUSED] = _fused(pool, dense_weight)
        order = list(steps.get(FUSED) or (pool.dense if dense_weight else pool.lexical))
        chunks: dict[int, Chunk] = {}

        def texts() -> Iterator[str]:
            for first in range(0, len(order), _READ_AT_ONCE):  # seldom more than once
                rows = [row for row, _ in order[first : first + _READ_AT_ONCE]]
                for row, chunk in zip(rows, self.index.chunks.take(rows), strict=True):
                    chunks[row] = chunk
                    yield shown_text(chunk)

        kept, left_out = distinct(texts(), self.config.near_duplicates, self.depth)
        order = [order[position] for position in kept]
        if rerank and self._reranker:
            passages = [shown_text(chunks[row]) for row, _ in order]
            scores = self._reranker.scores(pool.question, passages, _RERANKED_AT_ONCE)
            order = [(order[i][0], float(scores[i])) for i in np.argsort(-scores, kind="stable")]
            steps[RERANKED] = order
        places = _places(steps, [row for row, _ in order])
        found = [
            Found(row, chunks[row], rank, score, places[row])
            for rank, (row, score) in enumerate(order, start=1)
        ]
        return Ranking(found, left_out)

    def explain(self, question: str, dense_weight: float) -> list[Explained]:
        """Where each retriever, their fusion and the reranker have what any of them has among its first.

        Dense and lexical search are both shown whatever the weight; where it takes one of them alone,
        the fusion shown is that of ``dense_weight`` of the settings.

        Returns:
          Chunks by rank in the end; those that are left out after them, by the fusion.
        """
        (pool,) = self.pools([question], [0.5])
        served = self.rank(pool, dense_weight).found
        weight = dense_weight if 0 < dense_weight < 1 else self.config.dense_weight
        steps = {DENSE: pool.dense, LEXICAL: pool.lexical, FUSED: _fused(pool, weight)}
        firsts = [row for scored in steps.values() for row, _ in scored[: self.depth]]
        if self._reranker:
            steps[RERANKED] = [(found.row, found.score) for found in served]
        ranks = {found.row: found.rank for found in served}
        rows = list(dict.fromkeys([*ranks, *firsts]))
        places = _places(steps, rows)
        explained = [
            Explained(chunk, ranks.get(row), places[row])
            for row, chunk in zip(rows, self.index.chunks.take(rows), strict=True)
        ]
        return sorted(explained, key=lambda each: (each.rank or len(rows) + 1, each.places[FUSED].rank))


def _fused(pool: Pool, dense_weight: float) -> list[Scored]:
    rankings = [[row for row, _ in scored] for scored in (pool.dense, pool.lexical)]
    return fuse(rankings, [dense_weight, 1 - dense_weight])


def _places(steps: Mapping[str, Sequence[Scored]], rows: Sequence[int]) -> dict[int, dict[str, Place]]:
    """Row → the places that the steps have it at."""
    places: dict[int, dict[str, Place]] = {row: {} for row in rows}
    for step, scored in steps.items():
        for rank, (row, score) in enumerate(scored, start=1):
            if row in places:
                places[row][step] = Place(rank, score)
    return places


def _allowed(chunks: ChunkTable, filters: Mapping[str, str | tuple[str, ...]]) -> np.ndarray | None:
    """Which chunks pass the filters: bool [N], None if all do."""
    if not filters:
        return None
    wanted = {
        key: {normalise(each) for each in ((value,) if isinstance(value, str) else value)}
        for key, value in filters.items()
    }
    metadata = [dict(pairs) for pairs in chunks.columns("metadata")["metadata"]]
    known = {key for each in metadata for key in each}
    for key in wanted:
        if key not in known:
            raise InputError(
                f"retrieval.filters.{key} is not in the documents' metadata; "
                f"use {', '.join(sorted(known)) or 'no filter, since they have none'}."
            )
    allowed = np.array(
        [all(each.get(key) in values for key, values in wanted.items()) for each in metadata], dtype=bool
    )
    if not allowed.any():
        raise InputError(
            f"retrieval.filters {dict(filters)} leave none of {len(chunks)} chunks; give other values."
        )
    return allowed
