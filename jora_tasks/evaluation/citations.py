"""Citations at the end of an answer, and whether they name the sources that hold the evidence.

Source of the measures: Gao et al., "Enabling Large Language Models to Generate Text with Citations" (ALCE,
arXiv 2305.14627), section 4. There a model judges whether sources support a statement; here an answer
is one statement, and the sources that support it are those known to hold its evidence.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

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
    """Precision: the share of what is cited that supports the answer, 0 where nothing is cited.
    Recall: the share of what supports it that is cited.

    Args:
      cited: labels, each once.
      supporting: labels of the sources with the evidence, at least one.
    """
    right = len(set(cited) & set(supporting))
    return CitationScore(right / len(cited) if cited else 0.0, right / len(set(supporting)))
