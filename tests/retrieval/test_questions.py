import json

import pytest

from jora_tasks.errors import InputError
from retrieval.evidence import Evidence
from retrieval.questions import read_questions


def write(tmp_path, *rows):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def load(path):
    return read_questions(path)


def test_jsonl_with_everything(tmp_path):
    row = {"id": 7, "question": " Why?\r\n", "answers": ["a", " "], "split": "dev", "group": "g"}
    row["evidence"] = [{"document_id": "d", "text": "cafe\u0301"}, {"document_id": "d", "start": 1, "end": 2}]
    (question,) = load(write(tmp_path, row, ""))
    assert (question.id, question.question, question.answers) == ("7", "Why?", ("a",))
    assert (question.split, question.group) == ("dev", "g")
    assert question.evidence == (Evidence("d", "caf\u00e9"), Evidence("d", None, 1, 2))


def test_one_answer_and_an_id_of_its_own(tmp_path):
    first, second = load(write(tmp_path, {"question": "a", "answer": "x"}, {"question": "b", "answer": "x"}))
    assert first.id == first.group != second.id


def test_alpaca_json(tmp_path):
    path = tmp_path / "alpaca.json"
    path.write_text(
        json.dumps(
            [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Hi", "output": "Ho"}]
        )
    )
    assert [(q.question, q.answers) for q in load(path)] == [("Add.\n\n1 2", ("3",)), ("Hi", ("Ho",))]


GOOD = {"question": "q", "answer": "a"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"questions\.jsonl:2 is not JSON"),
        ("[1]", r"jsonl:2 must be a JSON object"),
        ({"answer": "a"}, r"jsonl:2 has no question"),
        ({"question": " ", "answer": "a"}, r"jsonl:2 has no question"),
        ({"question": "q"}, r"jsonl:2 must have answers"),
        ({"question": "q", "answers": [1]}, r"jsonl:2 must have answers"),
        ({"question": "q", "answers": []}, r"jsonl:2 has no answer"),
        ({"question": "q", "answer": " "}, r"jsonl:2 has no answer"),
        ({"question": "q", "answers": ["\u200b", "\ufeff\u00a0"]}, r"jsonl:2 has no answer"),
        ({"question": "\u200d\u2060", "answer": "a"}, r"jsonl:2 has no question"),
        ({"question": "q\x1b[31m", "answer": "a"}, r"jsonl:2 has a control character, U\+001B, in its"),
        ({"question": "q", "answers": ["a", "b\0"]}, r"jsonl:2 has a control character, U\+0000, in its"),
        ({"instruction": "q", "output": "a\x9b"}, r"jsonl:2 has a control character, U\+009B, in its"),
        (
            {"question": "q", "answer": "b", "split": "val"},
            r"jsonl:2: split 'val' must be train, dev or test",
        ),
        ({"question": "q", "answer": "b", "group": []}, r"jsonl:2: group must be text"),
        ({"question": "q", "answer": "b", "evidence": "d"}, r"jsonl:2: evidence must be a list"),
        ({"question": "q", "answer": "b", "evidence": [{"document_id": "d"}]}, r"jsonl:2: evidence must be"),
        (
            {"question": "q", "answer": "b", "evidence": [{"document_id": "d", "start": 5, "end": 5}]},
            r"jsonl:2: evidence must be",
        ),
        ({"question": "q", "answer": "b", "split": {}}, r"jsonl:2: split \{\} must be train"),
        ({"question": "q", "answer": "b", "split": False}, r"jsonl:2: split False must be train"),
        ({"instruction": ["q"], "output": "b"}, r"jsonl:2: instruction and input must be text"),
        ({"instruction": "q", "input": 0, "output": "b"}, r"jsonl:2: instruction and input must be text"),
        ({"question": "q\ud800", "answer": "b"}, r"jsonl:2 has half of a surrogate pair, '\\ud800'"),
        ({"question": "q", "answer": "b", "group": "\udc00"}, r"jsonl:2 has half of a surrogate pair"),
        ('{"question": "q", "answer": "a", "question": "r"}', r"jsonl:2 .*'question' is given twice"),
        ("[" * 100_000, r"jsonl:2 .*nested too deeply"),
        (GOOD, r"jsonl:2 has the id .* of .*jsonl:1, or repeats"),
    ],
)
def test_bad_rows_are_refused_by_file_and_line(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        load(write(tmp_path, GOOD, row))


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"questions\.path .*none\.jsonl cannot be read \(No such file"):
        load(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match=r"questions\.path .* cannot be read \(Is a directory\)"):
        load(tmp_path)
    with pytest.raises(InputError, match="holds no question"):
        load(write(tmp_path, ""))
    with pytest.raises(InputError, match="is not JSON"):
        load(write(tmp_path, "[{]"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "caf\xe9"}')
    with pytest.raises(InputError, match="not UTF-8"):
        load(tmp_path / "latin.jsonl")


def test_the_group_is_in_a_field_of_choice(tmp_path):
    path = write(tmp_path, {**GOOD, "group": "g", "topic": 3}, {"id": "x", "question": "r", "answer": "a"})
    assert [question.group for question in read_questions(path, "topic")] == ["3", "x"]
    assert [question.place for question in read_questions(path)] == [f"{path}:1", f"{path}:2"]
