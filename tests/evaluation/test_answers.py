"""Answer measures against hand-worked cases and rouge-score."""

from __future__ import annotations

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from jora_tasks.errors import InputError
from jora_tasks.evaluation.answers import AnswerScore, exact_match, normalise, score, token_f1

WORDS = [
    "the",
    "Celery",
    "executor",
    "a",
    "max_active_runs",
    "16",
    "3.0",
    "True.",
    "an",
    "(none)",
    "pool",
    "pool",
]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Eiffel   Tower!", "eiffel tower"),
        ("AIRFLOW__CORE__PARALLELISM", "airflowcoreparallelism"),
        ("2.10.0", "2100"),
        ("an apple\ta\nday", "apple day"),
        ("theatre and anchor", "theatre and anchor"),  # articles only as whole words
        ("the-end", "theend"),  # punctuation goes first, as in the official script
        ("“curly”", "“curly”"),  # only ASCII punctuation, as in the official script
        ("A. The!", ""),
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "f1"),
    [
        ("the Executor.", "executor", 1.0, 1.0),
        ("local executor", "executor", 0.0, 2 / 3),
        ("pool pool pool", "pool", 0.0, 0.5),  # a repeated token counts once
        ("true", "false", 0.0, 0.0),
        ("", "executor", 0.0, 0.0),
        ("the", "an", 1.0, 1.0),  # both empty once normalised
    ],
)
def test_scores_by_hand(prediction: str, answer: str, exact: float, f1: float) -> None:
    assert exact_match(prediction, answer) == exact
    assert token_f1(prediction, answer) == pytest.approx(f1)


class _Normalised:
    """Tokenizer for rouge-score that leaves only the counting to it."""

    def tokenize(self, text: str) -> list[str]:
        return normalise(text).split()


def test_f1_equals_rouge_1() -> None:
    oracle = RougeScorer(["rouge1"], tokenizer=_Normalised())
    generator = random.Random(0)
    compared = 0
    for _ in range(300):
        prediction = " ".join(generator.choices(WORDS, k=generator.randint(1, 7)))
        answer = " ".join(generator.choices(WORDS, k=generator.randint(1, 4)))
        if normalise(prediction) and normalise(answer):  # ROUGE has no rule for empty texts
            compared += 1
            assert token_f1(prediction, answer) == pytest.approx(
                oracle.score(answer, prediction)["rouge1"].fmeasure
            )
    assert compared > 200


def test_best_of_several_answers_counts() -> None:
    assert score("sqlite database", ["postgres", "SQLite", "the sqlite database"]) == AnswerScore(1.0, 1.0)
    assert score("sqlite database", ["postgres", "sqlite"]) == AnswerScore(0.0, pytest.approx(2 / 3))


def test_no_answer_to_compare_with() -> None:
    with pytest.raises(InputError, match="no right answer"):
        score("sqlite", [])
