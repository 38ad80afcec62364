"""Exact match and token F1 of short answers, by the rules of SQuAD.

Source: Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text"
(arXiv 1606.05250), section 6.1. An answer and a prediction are compared without case,
punctuation, articles and extra space; of several right answers the best counts. Where one of two
texts has no token left, F1 is 1 if both have none and else 0, as in SQuAD 2.0 (arXiv 1806.03822).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jora_tasks.errors import InputError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class AnswerScore:
    """How right one prediction is; both figures lie in 0..1."""

    exact_match: float
    f1: float


def normalise(text: str) -> str:
    """Lower case, no ASCII punctuation, no English article, single spaces.

    >>> normalise("The  Celery-Executor!")
    'celeryexecutor'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1.0 if the normalised texts are equal, else 0.0."""
    return float(normalise(prediction) == normalise(answer))


def token_f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the tokens of the normalised texts, as bags."""
    predicted, expected = normalise(prediction).split(), normalise(answer).split()
    if not predicted or not expected:
        return float(predicted == expected)
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * shared / (len(predicted) + len(expected))


def score(prediction: str, answers: Sequence[str]) -> AnswerScore:
    """The best exact match and the best F1 over all right answers.

    Raises:
      InputError: if there is no right answer to compare with.
    """
    if not answers:
        raise InputError("A question has no right answer to compare with; give `answers` at least one text.")
    return AnswerScore(
        exact_match=max(exact_match(prediction, answer) for answer in answers),
        f1=max(token_f1(prediction, answer) for answer in answers),
    )
