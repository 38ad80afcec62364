"""What may stand as a source in a prompt: retrieved chunks, and those that hold the evidence."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.chunking import Chunk
    from retrieval.evidence import Span
    from retrieval.search import Found


@dataclass(frozen=True)
class Passage:
    """A chunk as a source.

    Attributes:
      oracle: whether it holds some of the evidence, or is a copy of a chunk that does.
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


class Library:
    """The chunks of an index, found by document; none is read before it is asked for.

    Args:
      chunks: in any order, those of one document in its own.
      document_ids: of each chunk, where it is known without reading them.
    """

    def __init__(self, chunks: Sequence[Chunk], document_ids: Iterable[str] | None = None) -> None:
        self.chunks = chunks
        self._rows: dict[str, list[int]] = defaultdict(list)
        ids = (chunk.document_id for chunk in chunks) if document_ids is None else document_ids
        for row, document_id in enumerate(ids):
            self._rows[document_id].append(row)

    def relevant(self, spans: Sequence[Span]) -> list[Chunk]:
        """The chunks that hold some of the evidence, in the order of their documents."""
        from retrieval.evidence import relevant_chunks

        documents = {span.document_id for span in spans} & self._rows.keys()
        return relevant_chunks(
            spans, {document: [self.chunks[row] for row in self._rows[document]] for document in documents}
        )


def read_question(row: Mapping[str, Any]) -> Retrieved:
    """A row of ``contexts.parquet``."""
    from retrieval.evidence import Span, is_relevant

    spans = tuple(Span(**span) for span in row["evidence"])

    def relevant(each: Mapping[str, Any]) -> bool:
        said = each.get("relevant")  # contexts made by an earlier release do not say it
        within = is_relevant(each["document_id"], each["start"], each["end"], spans)
        return within if said is None else bool(said)

    def passages(listed: Sequence[Mapping[str, Any]]) -> tuple[Passage, ...]:
        return tuple(
            Passage(
                each["chunk_id"],
                each["document_id"],
                each["start"],
                each["end"],
                each["heading"],
                each["text"],
                relevant(each),
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
        passages(row.get("candidates", ())),
    )


def found_passage(found: Found) -> Passage:
    """A chunk that a search found for a question whose evidence is not known."""
    return dataclasses.replace(passage(found.chunk, oracle=False), score=found.score)


def passage(chunk: Chunk, *, oracle: bool) -> Passage:
    """A chunk that retrieval did not find."""
    return Passage(
        chunk.id, chunk.document_id, chunk.start, chunk.end, chunk.heading, chunk.text, oracle=oracle
    )


def missing_oracles(spans: Sequence[Span], present: Sequence[Passage], library: Library) -> list[Passage]:
    """The chunks to add so that each piece of evidence has one or a copy: the first with the most of it.

    Args:
      spans: where the evidence stands.
      present: passages that are there already.
      library: the chunks of the index.
    """
    added: list[Passage] = []
    for span in spans:
        there = [*present, *added]
        if any(span.overlaps(each.document_id, each.start, each.end) for each in there):
            continue
        holding = library.relevant([span])
        if holding and not {chunk.text for chunk in holding} & {each.text for each in there}:
            most = max(holding, key=lambda chunk: min(chunk.end, span.end) - max(chunk.start, span.start))
            added.append(passage(most, oracle=True))
    return added
