import pytest

from jora_tasks.errors import InputError
from retrieval.evidence import Evidence, Span
from retrieval.labels import Missing, with_evidence
from retrieval.questions import Question

TEXTS = {"d": "Default: 5\nType: int"}


def question(id_, *texts, split="train"):
    return Question(id_, "q", ("a",), split, id_, tuple(Evidence("d", text) for text in texts), f"q:{id_}")


WHOLE, HALF = question("whole", "Type: int"), question("half", "Default: 5", "Default: 6")
HELD_OUT = question("test", split="test")
GONE = Missing("half", Evidence("d", "Default: 6"))


def test_what_is_gone_is_told_and_the_rest_is_kept():
    found, missing = with_evidence([WHOLE, HALF, HELD_OUT], TEXTS, "keep")
    assert found == [(WHOLE, [Span("d", 11, 20)]), (HALF, [Span("d", 0, 10)]), (HELD_OUT, [])]
    assert missing == [GONE]


def test_such_a_question_is_left_out_or_refused_by_option():
    found, missing = with_evidence([WHOLE, HALF, HELD_OUT], TEXTS, "drop")
    assert [each.id for each, _ in found] == ["whole", "test"]
    assert missing == [GONE]
    with pytest.raises(InputError, match=r"q:half: its evidence is no longer in d, and so with 0 other"):
        with_evidence([WHOLE, HALF, HELD_OUT], TEXTS, "error")
    assert with_evidence([WHOLE, HELD_OUT], TEXTS, "error")[1] == []


def test_leaving_out_may_not_empty_a_split():
    with pytest.raises(InputError, match=r"drop leaves no train question, since 1 have evidence"):
        with_evidence([HALF, HELD_OUT], TEXTS, "drop")
