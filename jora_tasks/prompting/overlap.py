"""Training questions that give a held-out one away: the same words, a long run of them, or the same fact.

Source of the length of a run: Brown et al., "Language Models are Few-Shot Learners" (arXiv 2005.14165),
appendix C: a 13-gram in common.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from retrieval.evidence import Span

NGRAM = 13
_LONGEST_FACT = 300
Kind = Literal["exact", "13-gram", "fact"]


@dataclass(frozen=True)
class Asked:
    """What of a question can overlap: its words, its answers', and where its evidence stands."""

    id: str
    question: str
    answers: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Overlap:
    """A question and the first one of another split that it overlaps, with what they share."""

    id: str
    other: str
    kind: Kind
    shared: str


def find_overlaps(asked: Iterable[Asked], others: Sequence[Asked]) -> list[Overlap]:
    """The questions that overlap one of the others, at most once each, in their order.

    ``exact``: the same question but for case, punctuation and space. ``13-gram``: 13 words in a row in
    common, in the questions or in the answers. ``fact``: the same answer from evidence in the same place,
    where that is a fact's (at most 300 characters) and not a passage with many facts.
    """
    known = _Known(others)
    return [found for each in asked if (found := known.overlap(each))]


@dataclass(frozen=True)
class Overlaps:
    """What was found between the splits.

    Attributes:
      train, instructions: with a dev or test question.
      dev: with a test question; only told.
    """

    train: tuple[Overlap, ...]
    instructions: tuple[Overlap, ...]
    dev: tuple[Overlap, ...]

    def to_remove(self) -> frozenset[str]:
        """Ids of the training examples that give a held-out question away."""
        return frozenset(each.id for each in (*self.train, *self.instructions))

    def counts(self) -> dict[str, dict[str, int]]:
        """Where from → kind → number, of those that there are."""
        return {
            name: dict(Counter(each.kind for each in found)) for name, found in vars(self).items() if found
        }

    def lines(self) -> list[str]:
        """One JSON object an overlap: split, and what `Overlap` has."""
        return [
            json.dumps({"of": name, **vars(each)}, ensure_ascii=False)
            for name, found in vars(self).items()
            for each in found
        ]


def overlaps_of(asked: Mapping[str, Sequence[Asked]], instructions: Sequence[Asked] = ()) -> Overlaps:
    """What training questions (``asked["train"]``) and instructions share with dev and test questions."""
    held_out = [*asked["dev"], *asked["test"]]
    return Overlaps(
        tuple(find_overlaps(asked["train"], held_out)),
        tuple(find_overlaps(instructions, held_out)),
        tuple(find_overlaps(asked["dev"], asked["test"])),
    )


class _Known:
    """Everything of one split that could be met again, by what it is looked up by."""

    def __init__(self, asked: Iterable[Asked]) -> None:
        self._questions: dict[tuple[str, ...], str] = {}
        self._runs: dict[tuple[str, tuple[str, ...]], str] = {}
        self._facts: dict[tuple[str, tuple[str, ...]], list[tuple[Span, str]]] = {}
        for each in asked:
            self._questions.setdefault(_words(each.question), each.id)
            for run in _runs(each):
                self._runs.setdefault(run, each.id)
            for answer in each.answers:
                for span in _of_facts(each.spans):
                    key = (span.document_id, _words(answer))
                    self._facts.setdefault(key, []).append((span, each.id))

    def overlap(self, asked: Asked) -> Overlap | None:
        if (other := self._questions.get(_words(asked.question))) is not None:
            return Overlap(asked.id, other, "exact", asked.question)
        for run in _runs(asked):
            if (other := self._runs.get(run)) is not None:
                return Overlap(asked.id, other, "13-gram", " ".join(run[1]))
        for answer in asked.answers:
            for span in _of_facts(asked.spans):
                for place, other in self._facts.get((span.document_id, _words(answer)), ()):
                    if place.overlaps(span.document_id, span.start, span.end):
                        return Overlap(asked.id, other, "fact", answer)
        return None


def _runs(asked: Asked) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Runs of 13 words of the question and of the answers, each kind apart."""
    for kind, texts in (("question", (asked.question,)), ("answer", asked.answers)):
        for text in texts:
            words = _words(text)
            for start in range(len(words) - NGRAM + 1):
                yield kind, words[start : start + NGRAM]


def _of_facts(spans: Iterable[Span]) -> list[Span]:
    return [span for span in spans if span.end - span.start <= _LONGEST_FACT]


def _words(text: str) -> tuple[str, ...]:
    """Words without case and punctuation; a text without a word is one by itself."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return tuple(re.findall(r"\w+", folded)) or ("".join(folded.split()),)
