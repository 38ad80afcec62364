"""Answer measures against hand-worked cases and rouge-score."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from jora_tasks.errors import InputError
from jora_tasks.evaluation.answers import (
    AnswerScore,
    abstains,
    contains_answer,
    exact_match,
    normalise,
    rouge_l,
    score,
    token_f1,
)

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


texts = st.lists(st.sampled_from([*WORDS, "-", "days", "Days"]), max_size=8).map(" ".join)


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
    best = AnswerScore(exact_match=1.0, f1=1.0, contains_answer=1.0, rouge_l=1.0)
    assert score("sqlite database", ["postgres", "SQLite", "the sqlite database"]) == AnswerScore(
        exact_match=1.0, f1=1.0, contains_answer=1.0, rouge_l=pytest.approx(0.8)
    )
    assert score("sqlite database", ["postgres", "SQLite", "sqlite database"]) == best
    assert score("sqlite database", ["postgres", "sqlite"]) == AnswerScore(
        0.0, pytest.approx(2 / 3), 1.0, pytest.approx(2 / 3)
    )


@pytest.mark.parametrize(
    ("prediction", "answer", "contained"),
    [
        ("It is 30 days.", "30 days", 1.0),
        ("It is 300 days.", "30", 0.0),  # whole words
        ("days 30", "30 days", 0.0),  # in a row
        ("", "30", 0.0),
        ("the", "an", 1.0),
        ("30", "the", 0.0),
    ],
)
def test_contains_answer_by_hand(prediction: str, answer: str, contained: float) -> None:
    assert contains_answer(prediction, answer) == contained


@given(texts, texts)
def test_rouge_l_equals_rouge_score(prediction: str, answer: str) -> None:
    oracle = RougeScorer(["rougeL"]).score(answer, prediction)["rougeL"].fmeasure
    if any(character.isalnum() for character in prediction + answer):  # it has no rule for empty texts
        assert rouge_l(prediction, answer) == pytest.approx(oracle)


def test_rouge_l_knows_words_of_any_script() -> None:
    assert rouge_l("Тридцать дней в году", "тридцать дней") == pytest.approx(2 * 2 / 6)


@pytest.mark.parametrize(
    ("prediction", "abstained"),
    [
        ("The sources do not say.", True),
        ("the sources do not say", True),
        ("The sources do not say it, but 30.", True),
        ("The sources do not saying", False),
        ("30", False),
        ("", False),
    ],
)
def test_abstaining(prediction: str, abstained: bool) -> None:
    assert abstains(prediction, "The sources do not say.") is abstained


def test_no_answer_to_compare_with() -> None:
    with pytest.raises(InputError, match="no right answer"):
        score("sqlite", [])
