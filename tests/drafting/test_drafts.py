import pytest

from jora_tasks.drafting.drafts import (
    CONTROL,
    DUPLICATE,
    IN_QUESTION,
    NOT_IN_CHUNK,
    Draft,
    answered_without,
    parse_reply,
    question_row,
    refusal,
    same_question,
)
from retrieval.chunking import Chunk
from retrieval.evidence import Evidence, Span, resolve

TEXT = "# Leave\n\nEveryone has 30  days a year. They end in June."
CHUNK = Chunk("c", "leave.md", 100, 100 + len(TEXT), "Leave", TEXT, 12)


@pytest.mark.parametrize(
    ("reply", "draft"),
    [
        ("Question: How long?\nAnswer: 30 days", Draft("How long?", "30 days")),
        ('Sure:\n\n1. **Question:** How long?\n2. **Answer**: "30 days".', Draft("How long?", "30 days")),
        ('```json\n{"question": "How long?", "answer": "30 days"}\n```', Draft("How long?", "30 days")),
        ('{"question": "How long?", "answer": 30}', None),
        ("{broken\nQuestion: a?\nAnswer: b", Draft("a?", "b")),
        ("Question: How long?", None),
        ("Question:\nAnswer: b", None),
        ("Question: a?\nAnswer: .", None),
        ("Question: a?\nAnswer: \u200b\u2060", None),
        ("Question: \ufeff\u200d\nAnswer: b", None),
        ("Question: می\u200cروم?\nAnswer: b", Draft("می\u200cروم?", "b")),
        ("Question: a?\nAnswer: " + "b" * 1001, None),
        ("", None),
    ],
)
def test_replies_are_read_in_either_form(reply, draft):
    assert parse_reply(reply) == draft


def test_refusals():
    assert refusal(Draft("How long is leave?", "30 DAYS"), CHUNK, set()) is None
    assert refusal(Draft("How long is leave?", "3"), CHUNK, set()) == NOT_IN_CHUNK
    assert refusal(Draft("Is it 30 days?", "30 days"), CHUNK, set()) == IN_QUESTION
    for control in ("\0", "\x1b[31m", "\x7f", "\x9b", "\ud800"):
        assert refusal(Draft(f"How long is leave{control}?", "30 days"), CHUNK, set()) == CONTROL
        assert refusal(Draft("How long is leave?", f"30 days{control}"), CHUNK, set()) == CONTROL
    asked = {same_question("how long, is leave")}
    assert refusal(Draft("How long is leave?", "30 days"), CHUNK, asked) == DUPLICATE
    assert answered_without("About 30 days, I think.", Draft("?", "30 days"))
    assert not answered_without("About 130 days.", Draft("?", "30 days"))


def test_a_row_has_the_texts_own_words_and_the_sentence_as_evidence():
    row = question_row(Draft("How long?", "30 DAYS"), CHUNK)
    assert row["answers"] == ["30 days"] and row["group"] == "leave.md"
    (evidence,) = row["evidence"]
    assert evidence["text"] == "Everyone has 30  days a year."
    document = "x" * 100 + TEXT
    span = resolve(Evidence(**evidence), {"leave.md": document})
    assert span == Span("leave.md", evidence["start"], evidence["end"])
    assert document[span.start : span.end] == evidence["text"]
    last = question_row(Draft("When?", "June"), CHUNK)["evidence"][0]
    assert last["text"] == "They end in June."
