"""What may stand as a source in a prompt: retrieved chunks, and those that hold the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.chunking import Chunk
    from retrieval.evidence import Span


@dataclass(frozen=True)
class Passage:
    """A chunk as a source.

    Attributes:
      oracle: whether it holds some of the evidence.
      score: what retrieval gave it; None where it was not retrieved.
    """

    chunk_id: str
    document_id: str
    start: int
    end: int
    heading: str
    text: str
    oracle: bool
    score: float | None = None


@dataclass(frozen=True)
class Retrieved:
    """A question and what was retrieved for it.

    Attributes:
      answers: those that count as right; the first is the one learned.
      spans: where its evidence stands; empty if that is unknown.
      contexts: passages by rank, as retrieval serves them.
      candidates: those of the ranks after them.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    split: str
    spans: tuple[Span, ...] = ()
    contexts: tuple[Passage, ...] = ()
    candidates: tuple[Passage, ...] = ()


@dataclass(frozen=True)
class Library:
    """The chunks of an index, and those of each document."""

    chunks: Sequence[Chunk]
    by_document: Mapping[str, list[Chunk]] = field(init=False)

    def __post_init__(self) -> None:
        from retrieval.evidence import by_document

        object.__setattr__(self, "by_document", by_document(self.chunks))


def read_question(row: Mapping[str, Any]) -> Retrieved:
    """A row of ``contexts.parquet``."""
    from retrieval.evidence import Span, is_relevant

    spans = tuple(Span(**span) for span in row["evidence"])

    def passages(listed: Sequence[Mapping[str, Any]]) -> tuple[Passage, ...]:
        return tuple(
            Passage(
                each["chunk_id"],
                each["document_id"],
                each["start"],
                each["end"],
                each["heading"],
                each["text"],
                is_relevant(each["document_id"], each["start"], each["end"], spans),
                each["score"],
            )
            for each in sorted(listed, key=lambda each: each["rank"])
        )

    return Retrieved(
        row["question_id"],
        row["question"],
        tuple(row["answers"]),
        row["split"],
        spans,
        passages(row["contexts"]),
        passages(row["candidates"]),
    )


def passage(chunk: Chunk, *, oracle: bool) -> Passage:
    """A chunk that retrieval did not find."""
    return Passage(
        chunk.id, chunk.document_id, chunk.start, chunk.end, chunk.heading, chunk.text, oracle=oracle
    )


def missing_oracles(spans: Sequence[Span], present: Sequence[Passage], library: Library) -> list[Passage]:
    """The chunks to add so that each piece of evidence has one: the first of those with the most of it.

    Args:
      spans: where the evidence stands.
      present: passages that are there already.
      library: the chunks of the index.
    """
    added: list[Passage] = []
    for span in spans:
        if any(span.overlaps(each.document_id, each.start, each.end) for each in (*present, *added)):
            continue
        holding = [
            chunk
            for chunk in library.by_document.get(span.document_id, ())
            if span.overlaps(chunk.document_id, chunk.start, chunk.end)
        ]
        if holding:
            most = max(holding, key=lambda chunk: min(chunk.end, span.end) - max(chunk.start, span.start))
            added.append(passage(most, oracle=True))
    return added
