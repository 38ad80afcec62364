import pytest

from jora_tasks.evaluation.citations import score_citations, split_citations
from jora_tasks.evaluation.summary import ADAPTER, CLOSED_BOOK, Question, Resampling, score_arm, summarise


@pytest.mark.parametrize(
    ("text", "answer", "labels"),
    [
        ("30 days [2]", "30 days", (2,)),
        ("30 days [2][4].", "30 days", (2, 4)),
        ("30 days[2] [2] ", "30 days", (2,)),
        ("30 days", "30 days", ()),
        ("[core] sql_alchemy", "[core] sql_alchemy", ()),
        ("a [1] b", "a [1] b", ()),
        ("[3]", "", (3,)),
        ("", "", ()),
    ],
)
def test_labels_at_the_end_are_no_part_of_the_answer(text, answer, labels):
    assert split_citations(text) == (answer, labels)


def test_precision_and_recall():
    found = {tuple(cited): score_citations(cited, (1, 3)) for cited in ([1], [1, 3], [2], [], [1, 2, 3, 4])}
    assert {key: (each.precision, each.recall) for key, each in found.items()} == {
        (1,): (1.0, 0.5),
        (1, 3): (1.0, 1.0),
        (2,): (0.0, 0.0),
        (): (0.0, 0.0),
        (1, 2, 3, 4): (0.5, 1.0),
    }


def ask(supporting):
    return [Question(f"q{i}", "q", ("30 days",), f"g{i}", each) for i, each in enumerate(supporting)]


SAID = {"q0": "30 days [1]", "q1": "30 days [2]", "q2": "30 days [1]"}


def test_answers_are_compared_without_citations_where_these_were_asked_for():
    rows = score_arm(ADAPTER, ask([(1,), (1,), ()]), SAID)
    assert [row.exact_match for row in rows] == [1.0, 1.0, 1.0]
    assert [row.citation_recall for row in rows] == [1.0, 0.0, None]
    assert [row.prediction for row in rows] == list(SAID.values())
    figures = summarise(rows, Resampling(100, 0.9, 0))
    assert figures["citations"]["citation_precision"] == 0.5 and figures["citations"]["n"] == 2
    closed = score_arm(CLOSED_BOOK, ask([(1,), (1,), ()]), SAID)
    assert "citations" not in summarise(closed, Resampling(100, 0.9, 0))


def test_else_labels_are_words_of_the_answer():
    rows = score_arm(ADAPTER, ask([None] * 3), SAID)
    assert [row.exact_match for row in rows] == [0.0, 0.0, 0.0]
    assert "citations" not in summarise(rows, Resampling(100, 0.9, 0))
