"""Citations at the end of an answer, and whether the sources they name support it.

Source of the measures: Gao et al., "Enabling Large Language Models to Generate Text with Citations" (ALCE,
arXiv 2305.14627), section 4, an answer being one statement. There a language model judges whether sources
support a statement, and so does `jora_tasks.evaluation.entailment.NliModel`. Without such a model support is
deterministic and a **proxy** of that, `by_words`: a source supports an answer if it has its words, or if the
answer is right and the source is known to hold the evidence. It sees no support in a paraphrase of a source
without known evidence, and takes chance matches of short answers for support.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from retrieval.answers import find_answer

_LABEL = r"\[\d{1,9}\]"
_AT_THE_END = re.compile(rf"((?:\s*{_LABEL})+)\s*\.?\s*$")


@dataclass(frozen=True)
class CitedAnswer:
    """An answer to a question, and what it cites.

    Attributes:
      said: the answer, without its citations.
      labels: cited, each once.
      sources: heading and text of each source shown, in the order of their labels, from 1.
      right: whether the answer is a known one.
      evidence: labels of the sources known to hold the evidence.
    """

    question: str
    said: str
    labels: tuple[int, ...]
    sources: Sequence[str]
    right: bool
    evidence: Collection[int]


Supports = Callable[[Collection[int]], bool]
"""Whether sources, named by label and taken together, support one answer."""

Judge = Callable[[Sequence[CitedAnswer]], list[Supports]]
"""Tells it for each of several answers, for the groups of labels that `judged_together` names."""


@dataclass(frozen=True)
class CitationScore:
    """How good one answer's citations are; both figures lie in 0..1."""

    precision: float
    recall: float


def split_citations(text: str) -> tuple[str, tuple[int, ...]]:
    """An answer without the labels at its end, and these, each once.

    >>> split_citations("30 days [2][4].")
    ('30 days', (2, 4))
    """
    found = _AT_THE_END.search(text)
    if not found:
        return text, ()
    labels = dict.fromkeys(int(label) for label in re.findall(r"\d+", found[1]))
    return text[: found.start()], tuple(labels)


def judged_together(labels: Collection[int]) -> set[frozenset[int]]:
    """The groups of cited sources on whose support a score depends: all, each alone, and all but one."""
    cited = frozenset(labels)
    return {cited, *(frozenset({label}) for label in cited), *(cited - {label} for label in cited)}


def score_citations(labels: Collection[int], supports: Supports) -> CitationScore:
    """Recall: 1 if what is cited, taken together, supports the answer. Precision: the share of what is cited
    that is to the point; a source is not if it does not support the answer alone and the others do without
    it, or if all together do not. Both are 0 where nothing is cited.

    Args:
      labels: cited, each once.
    """
    cited = frozenset(labels)
    if not cited or not supports(cited):
        return CitationScore(0.0, 0.0)

    def needless(label: int) -> bool:
        others = cited - {label}
        return bool(others) and not supports({label}) and supports(others)

    return CitationScore((len(cited) - sum(map(needless, cited))) / len(cited), 1.0)


def by_words(answers: Sequence[CitedAnswer]) -> list[Supports]:
    """The proxy: sources support an answer if one of them does by its words or its known evidence."""

    def supports(answer: CitedAnswer) -> Supports:
        supporting = supporting_labels(answer.said, answer.right, answer.sources, answer.evidence)
        return lambda labels: not set(labels).isdisjoint(supporting)

    return [supports(answer) for answer in answers]


def supporting_labels(
    said: str, right: bool, sources: Sequence[str], evidence: Collection[int]
) -> tuple[int, ...]:
    """Labels, from 1, of the sources that support an answer by themselves; arguments as of `CitedAnswer`."""
    return tuple(
        label
        for label, source in enumerate(sources, start=1)
        if (right and label in evidence) or (said.strip() and find_answer(source, said.strip().rstrip(".")))
    )
