"""Citations at the end of an answer, and whether the sources they name support it.

Source of the measures: Gao et al., "Enabling Large Language Models to Generate Text with Citations" (ALCE,
arXiv 2305.14627), section 4, an answer being one statement. There a language model judges whether sources
support a statement. Here support is deterministic and a **proxy** of that: a source supports an answer if
it has its words, or if the answer is right and the source is known to hold the evidence. It sees no
support in a paraphrase of a source without known evidence, and takes chance matches of short answers for
support.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from retrieval.answers import find_answer

_LABEL = r"\[\d{1,9}\]"
_AT_THE_END = re.compile(rf"((?:\s*{_LABEL})+)\s*\.?\s*$")


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


def score_citations(cited: Collection[int], supporting: Collection[int]) -> CitationScore:
    """Recall: 1 if what is cited, taken together, supports the answer. Precision: the share of what is cited
    that is to the point; a source is not if it does not support the answer alone and the others do without
    it, or if all together do not. Both are 0 where nothing is cited.

    Args:
      cited: labels, each once.
      supporting: labels of the sources that support the answer, each alone.
    """
    right = len(set(cited) & set(supporting))
    return CitationScore(right / len(cited) if cited else 0.0, float(right > 0))


def supporting_labels(
    said: str, right: bool, sources: Sequence[str], evidence: Collection[int]
) -> tuple[int, ...]:
    """Labels, from 1, of the sources that support an answer.

    Args:
      said: the answer, without its citations.
      right: whether it is.
      sources: headings and texts, in the order of their labels.
      evidence: labels of the sources known to hold the evidence.
    """
    return tuple(
        label
        for label, source in enumerate(sources, start=1)
        if (right and label in evidence) or (said.strip() and find_answer(source, said.strip().rstrip(".")))
    )
