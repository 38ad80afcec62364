"""Where the facts that answer a question stand, as spans of documents.

Labels are tied to spans, not to chunks, so that they outlive another way of chunking.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from retrieval.chunking import Chunk


@dataclass(frozen=True)
class Evidence:
    """Evidence as a questions file gives it: a document and a text, a span, or both."""

    document_id: str
    text: str | None = None
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Span:
    """Characters ``start`` to ``end`` of a document's text."""

    document_id: str
    start: int
    end: int

    def overlaps(self, document_id: str, start: int, end: int) -> bool:
        return self.document_id == document_id and start < self.end and self.start < end


def resolve(evidence: Evidence, texts: Mapping[str, str]) -> Span | None:
    """The span of the evidence in the documents as they are now, None if it is no longer there.

    A span without text is taken as it is while it lies within the document. A span with text must
    hold that text, or else the text must stand in the document just once. A text without a span
    stands for its first occurrence.

    Args:
      evidence: what to find.
      texts: document id → normalised text.
    """
    text = texts.get(evidence.document_id)
    if text is None:
        return None
    if evidence.start is not None and evidence.end is not None:
        within = evidence.end <= len(text)
        if within and evidence.text in (None, text[evidence.start : evidence.end]):
            return Span(evidence.document_id, evidence.start, evidence.end)
        if evidence.text is None or text.count(evidence.text) != 1:
            return None
    if evidence.text is None:
        return None
    start = text.find(evidence.text)
    return None if start < 0 else Span(evidence.document_id, start, start + len(evidence.text))


def is_relevant(document_id: str, start: int, end: int, spans: Iterable[Span]) -> bool:
    """Whether a chunk with this span holds some of the evidence itself, not in a copy."""
    return any(span.overlaps(document_id, start, end) for span in spans)


def relevant_chunks(spans: Iterable[Span], chunks_of: Mapping[str, list[Chunk]]) -> list[Chunk]:
    """The chunks that hold some of the evidence, in the order of their documents.

    Args:
      spans: where the evidence stands.
      chunks_of: document id → its chunks.
    """
    spans = list(spans)
    documents = dict.fromkeys(span.document_id for span in spans)
    return [
        chunk
        for document in documents
        for chunk in chunks_of.get(document, [])
        if is_relevant(chunk.document_id, chunk.start, chunk.end, spans)
    ]


def relevant_texts(spans: Iterable[Span], chunks_of: Mapping[str, list[Chunk]]) -> frozenset[str]:
    """The texts of `relevant_chunks`: any chunk with one of them is relevant, a copied document's as well."""
    return frozenset(chunk.text for chunk in relevant_chunks(spans, chunks_of))


def by_document(chunks: Iterable[Chunk]) -> dict[str, list[Chunk]]:
    """Document id → its chunks, in their order."""
    grouped: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        grouped.setdefault(chunk.document_id, []).append(chunk)
    return grouped
