import pytest
from hypothesis import given
from hypothesis import strategies as st

from jora_tasks.evaluation.citations import (
    judged_together,
    score_citations,
    split_citations,
    supporting_labels,
)
from jora_tasks.evaluation.summary import ADAPTER, Question, Said, Shown, score_arm
from tests.evaluation.alce import alce


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


def any_of(*supporting):
    return lambda labels: not set(labels).isdisjoint(supporting)


def test_precision_and_recall():
    """ALCE by hand, sources 1 and 3 supporting: what does not support alone is needless beside what does."""
    cited = ([1], [1, 3], [2], [], [1, 2, 3, 4])
    found = {tuple(labels): score_citations(labels, any_of(1, 3)) for labels in cited}
    assert {key: (each.precision, each.recall) for key, each in found.items()} == {
        (1,): (1.0, 1.0),
        (1, 3): (1.0, 1.0),
        (2,): (0.0, 0.0),
        (): (0.0, 0.0),
        (1, 2, 3, 4): (0.5, 1.0),
    }


def test_sources_that_support_only_together_are_none_of_them_needless():
    found = score_citations((1, 2), lambda labels: set(labels) == {1, 2})
    assert (found.precision, found.recall) == (1.0, 1.0)


@given(cited=st.sets(st.integers(1, 4)), supporting=st.sets(st.frozensets(st.integers(1, 4), min_size=1)))
def test_figures_are_those_of_alce_whatever_the_judge_says(cited, supporting):
    asked = []

    def supports(labels):
        asked.append(frozenset(labels))
        return frozenset(labels) in supporting

    found = score_citations(cited, supports)
    assert set(asked) <= judged_together(cited)
    assert (found.precision, found.recall) == alce(sorted(cited), lambda some: frozenset(some) in supporting)


@pytest.mark.parametrize(
    ("said", "right", "labels"),
    [
        ("30 days", True, (1, 2)),
        ("30 days.", False, (1,)),
        ("thirty", True, (2,)),
        ("40", False, ()),
        ("", False, ()),
    ],
)
def test_a_source_supports_what_it_says_or_is_known_to_hold(said, right, labels):
    sources = ("Leave\n30 days a year", "Leave\na month, roughly")
    assert supporting_labels(said, right, sources, evidence=(2,)) == labels


SAID = {"q0": Said("30 days [1]"), "q1": Said("30 days [2]"), "q2": Said("40 [1]"), "q3": Said("Not said.")}
SOURCES = ("Leave\n30 days", "Pay\nmonthly")


def asked(sources):
    question = [Question(f"q{i}", "q", ("30 days",), f"g{i}", f"g{i}") for i in range(4)]
    return [(each, Shown((1,), sources)) for each in question]


def test_answers_are_compared_without_citations_where_these_were_asked_for():
    rows = score_arm(ADAPTER, asked(SOURCES), SAID, "Not said.")
    assert [row.scores["exact_match"] for row in rows] == [1.0, 1.0, 0.0, 0.0]
    assert [row.scores.get("citation_recall") for row in rows] == [1.0, 0.0, 0.0, None]
    assert [row.abstained for row in rows] == [False, False, False, True]
    assert [row.prediction for row in rows] == [said.text for said in SAID.values()]


def test_else_labels_are_words_of_the_answer():
    rows = score_arm(ADAPTER, asked(None), SAID, "Not said.")
    assert [row.scores["exact_match"] for row in rows] == [0.0] * 4
    assert not [row for row in rows if "citation_recall" in row.scores]
