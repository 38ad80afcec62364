"""Documents to chunks: along headings, counted in the embedder's tokens, with exact spans."""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from retrieval.documents import Document
from retrieval.headings import find_headings

CHUNKER = "headings-2"  # raise with any change that would cut or label otherwise
SEPARATOR = " › "

# Where a long section is cut, best first: after a blank line, a line, a sentence, a word.
_BREAKS = tuple(re.compile(pattern) for pattern in (r"\n[ \t]*\n\s*", r"\n\s*", r"(?<=[.!?])\s+", r"\s+"))

Offsets = Callable[[str], list[tuple[int, int]]]


@dataclass(frozen=True)
class Cut:
    """A span of a text that becomes a chunk.

    Attributes:
      start, end: characters of the text.
      heading: the document's title and the headings above, joined by `` › ``.
      n_tokens: tokens of the span, without the embedder's start and end tokens.
    """

    start: int
    end: int
    heading: str
    n_tokens: int


@dataclass(frozen=True)
class Chunk:
    """A span of a document.

    Attributes:
      id: hash of document id, span, text and chunker settings.
      start, end: characters of the document's text; ``text == document.text[start:end]``.
      heading: the document's title and the headings above, joined by `` › ``.
      n_tokens: tokens of the text, without the embedder's start and end tokens.
      metadata: the document's.
    """

    id: str
    document_id: str
    start: int
    end: int
    heading: str
    text: str
    n_tokens: int
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)


def chunk_document(document: Document, offsets: Offsets, chunk_tokens: int, overlap: int = 0) -> list[Chunk]:
    """The chunks of a document: `cut_document`, with their texts and ids."""
    cuts = cut_document(document, offsets, chunk_tokens, overlap)
    return [make_chunk(document, cut, chunk_tokens, overlap) for cut in cuts]


def make_chunk(document: Document, cut: Cut, chunk_tokens: int, overlap: int) -> Chunk:
    """The chunk that a cut of the document's text with these settings is."""
    text = document.text[cut.start : cut.end]
    identity = [document.id, cut.start, cut.end, text, CHUNKER, chunk_tokens, overlap]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20]
    return Chunk(digest, document.id, cut.start, cut.end, cut.heading, text, cut.n_tokens, document.metadata)


def cut_document(document: Document, offsets: Offsets, chunk_tokens: int, overlap: int = 0) -> list[Cut]:
    """Cut a document into spans of at most ``chunk_tokens`` tokens.

    A section that fits is one span. A longer one is cut where a blank line, a line, a sentence or
    a word ends, the first of these that leaves the span at least half full. Every character that
    is not white space lies in a span.

    Args:
      document: its ``text`` is cut, its ``source`` says which heading syntax it has.
      offsets: the embedder's tokens of a text as character spans.
      chunk_tokens: most tokens of a span.
      overlap: most tokens that a span repeats from the one before it in its section.
    """
    return [
        Cut(a, b, heading, len(offsets(document.text[a:b])))
        for start, end, heading in sections(document)
        for a, b in _split(document.text, start, end, offsets, chunk_tokens, overlap)
    ]


def sections(document: Document) -> list[tuple[int, int, str]]:
    """The document's parts between headings: start, end and heading path.

    A heading without text of its own goes with the part below it.
    """
    text = document.text
    headings = find_headings(text, PurePosixPath(document.source).suffix.lower())
    if not headings:
        return [(0, len(text), document.title)]
    found: list[tuple[int, int, str]] = []
    path: list[tuple[int, str]] = []
    if text[: headings[0].start].strip():
        found.append((0, headings[0].start, document.title))
    waiting: int | None = None  # where a run of headings without text began
    ends = [heading.start for heading in headings[1:]] + [len(text)]
    for heading, end in zip(headings, ends, strict=True):
        path = [*((level, title) for level, title in path if level < heading.level)]
        path.append((heading.level, heading.title))
        start = heading.start if waiting is None else waiting
        if end < len(text) and not _has_body(text[heading.start : end], heading.title):
            waiting = start
            continue
        waiting = None
        titles = [title for _, title in path]
        if titles[0] != document.title:
            titles.insert(0, document.title)
        found.append((start, end, SEPARATOR.join(titles)))
    return found


def _has_body(section: str, title: str) -> bool:
    """Whether a section has more than its heading's words and adornment."""
    rest = section.replace(title, "", 1)
    return any(character.isalnum() for character in rest)


def _split(
    text: str, start: int, end: int, offsets: Offsets, limit: int, overlap: int
) -> Iterable[tuple[int, int]]:
    """Spans of at most ``limit`` tokens that cover ``text[start:end]``, white space at ends left out."""
    start, end = _stripped(text, start, end)
    if start == end:
        return
    tokens = [(start + a, start + b) for a, b in offsets(text[start:end]) if b > a]
    begins = [a for a, _ in tokens]
    if len(tokens) <= limit:
        yield start, end
        return
    breaks = [[start + found.end() for found in pattern.finditer(text[start:end])] for pattern in _BREAKS]
    position = reached = start  # where the next chunk may begin, and what chunks have covered
    while True:
        first = bisect_left(begins, position)
        room = limit
        while True:
            if first + room >= len(tokens):
                stop = end
            else:
                # the furthest end that keeps to the limit; cuts before half of it would be wasteful
                furthest = begins[first + room]
                half = max(begins[first + room // 2], reached)
                stop = _last_break(breaks, half, furthest) or furthest
            a, b = _stripped(text, position, stop)
            # a cut inside a word may give its parts more tokens than they had in it
            excess = len(offsets(text[a:b])) - limit
            if excess <= 0 or room == 1:
                break
            room = max(1, min(room, len(tokens) - first) - excess)
        if stop <= reached and position < reached:
            position = reached  # repeating left no room for anything new
            continue
        yield a, b
        if stop >= end:
            return
        position = reached = stop
        if overlap:
            earliest = begins[max(bisect_left(begins, stop) - overlap, 0)]
            position = _first_word(breaks[-1], max(earliest, a + 1), stop)


def _first_word(words: list[int], earliest: int, latest: int) -> int:
    """The first start of a word from ``earliest`` on, at most ``latest``."""
    found = bisect_left(words, earliest)
    return min(words[found], latest) if found < len(words) else latest


def _last_break(breaks: list[list[int]], after: int, until: int) -> int | None:
    """The last position in (after, until] of the best kind of break that has one there."""
    for positions in breaks:
        found = bisect_right(positions, until) - 1
        if found >= 0 and positions[found] > after:
            return positions[found]
    return None


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
