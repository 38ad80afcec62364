"""How right an answer is: exact match, token F1, whether it contains a right answer, ROUGE-L; abstention.

Source of the first two: Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text"
(arXiv 1606.05250), section 6.1. An answer and a prediction are compared without case, punctuation, articles
and extra space; of several right answers the best counts. Where one of two texts has no token left, F1 is
1 if both have none and else 0, as in SQuAD 2.0 (arXiv 1806.03822).

ROUGE-L: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), section 3.1: F1 of the longest
common subsequence, without stemming; words are runs of letters and digits of any script.
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
    """How right one prediction is; all figures lie in 0..1."""

    exact_match: float
    f1: float
    contains_answer: float
    rouge_l: float


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


def contains_answer(prediction: str, answer: str) -> float:
    """1.0 if the normalised answer stands in the normalised prediction as whole words in a row, else 0.0.

    An answer of which nothing is left is contained where nothing is left of the prediction.
    """
    predicted, expected = normalise(prediction), normalise(answer)
    return float(f" {expected} " in f" {predicted} " if expected else not predicted)


def rouge_l(prediction: str, answer: str) -> float:
    """F1 of the longest common subsequence of words; 0.0 where one has no word and the other has."""
    predicted, expected = _words(prediction), _words(answer)
    if not predicted or not expected:
        return float(predicted == expected)
    before = [0] * (len(expected) + 1)
    for word in predicted:
        row = [0]
        for column, other in enumerate(expected, start=1):
            row.append(before[column - 1] + 1 if word == other else max(before[column], row[-1]))
        before = row
    return 2 * before[-1] / (len(predicted) + len(expected))


def abstains(prediction: str, abstention: str) -> bool:
    """Whether a prediction begins with the words of the abstention."""
    said, words = normalise(prediction), normalise(abstention)
    return bool(words) and f"{said} ".startswith(f"{words} ")


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def score(prediction: str, answers: Sequence[str]) -> AnswerScore:
    """The best of each figure over all right answers.

    Raises:
      InputError: if there is no right answer to compare with.
    """
    if not answers:
        raise InputError("A question has no right answer to compare with; give `answers` at least one text.")
    return AnswerScore(
        exact_match=max(exact_match(prediction, answer) for answer in answers),
        f1=max(token_f1(prediction, answer) for answer in answers),
        contains_answer=max(contains_answer(prediction, answer) for answer in answers),
        rouge_l=max(rouge_l(prediction, answer) for answer in answers),
    )
