import json

import pytest

from jora_tasks.drafting.drafts import CLOSED_BOOK, CONTROL, DUPLICATE, NOT_IN_CHUNK, WITHOUT_CHUNK
from jora_tasks.drafting.run import draft_questions
from jora_tasks.drafting.writers import Failed
from jora_tasks.errors import InputError, RunStopped
from retrieval.chunk_table import ChunkTable, write_chunks
from retrieval.chunking import Chunk
from retrieval.questions import read_questions


@pytest.fixture
def chunks(tmp_path):
    texts = [f"Option {i} is on.\nIts value is v{i}." for i in range(10)]
    write_chunks(
        tmp_path / "chunks.parquet",
        (
            Chunk(f"c{i}", f"d{i}", 0, len(text), "Options", text, 8 if i < 9 else 2)
            for i, text in enumerate(texts)
        ),
    )
    return ChunkTable(tmp_path / "chunks.parquet")


class Model:
    """Answers by rule, as a model might, and can be stopped after some requests."""

    at_once = 3

    def __init__(self, stop_after=1000):
        self.identity = {"model": "rule"}
        self.drafted, self.stop_after = [], stop_after

    def reply(self, conversations):
        return [self._one(messages) for messages in conversations]

    def _one(self, messages):
        said = messages[-1]["content"]
        if messages[0]["content"] == CLOSED_BOOK:
            return "It is v5." if "option 5" in said else "No idea."
        if len(self.drafted) == self.stop_after:
            raise RunStopped("The endpoint is gone.")
        number = said.split("Option ")[1][0]
        self.drafted.append(number)
        if number == "0":
            return "Question: What is the value of \ud800?\nAnswer: v0"
        if number == "1":
            return Failed("refused by the endpoint")
        if number == "2":
            return "Question: What is the value of option 2?\nAnswer: unknown"
        shown = "3" if number == "4" else number  # the same question twice
        return f"Question: What is the value of option {shown}?\nAnswer: v{number}"


def test_what_is_kept_and_why_the_rest_is_not(chunks, tmp_path):
    output = tmp_path / "questions.jsonl"
    done = draft_questions(chunks, Model(), output, min_tokens=5)
    assert done["chunks"] == done["attempted"] == 9 and done["kept"] == 4
    assert done["refused"] == {
        CONTROL: 1,
        "refused by the endpoint": 1,
        NOT_IN_CHUNK: 1,
        WITHOUT_CHUNK: 1,
        DUPLICATE: 1,
    }
    questions = read_questions(output)
    assert len(questions) == 4
    assert {question.evidence[0].document_id for question in questions} == {each.group for each in questions}
    attempts = [json.loads(line) for line in (tmp_path / "questions.attempts.jsonl").read_text().splitlines()]
    assert sorted(each["chunk_id"] for each in attempts[1:]) == [f"c{i}" for i in range(9)]


def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not(chunks, tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    expected = draft_questions(chunks, Model(), whole, min_tokens=5)
    first = Model(stop_after=4)
    with pytest.raises(RunStopped):
        draft_questions(chunks, first, parts, min_tokens=5)
    kept = read_questions(parts)
    journal = tmp_path / "parts.attempts.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"chunk_id": "c')  # a kill in the middle of a line
    second = Model()
    assert draft_questions(chunks, second, parts, min_tokens=5) == expected
    assert parts.read_text() == whole.read_text()
    assert read_questions(parts)[: len(kept)] == kept
    assert len(second.drafted) == 9 - 3  # what is on disk is not asked again
    third = Model()
    assert draft_questions(chunks, third, parts, min_tokens=5) == expected
    assert third.drafted == []


def test_it_stops_at_the_count_and_more_go_on_from_there(chunks, tmp_path):
    output = tmp_path / "questions.jsonl"
    assert draft_questions(chunks, Model(), output, min_tokens=5, count=2)["kept"] == 2
    few = output.read_text()
    assert draft_questions(chunks, Model(), output, min_tokens=5, count=4)["kept"] == 4
    assert output.read_text().startswith(few)


def test_the_order_is_the_seeds(chunks, tmp_path):
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        model = Model()
        draft_questions(chunks, model, tmp_path / f"{name}.jsonl", min_tokens=5, seed=seed)
        orders.append(model.drafted)
    assert orders[0] == orders[1] != orders[2]


def test_files_of_others_are_refused(chunks, tmp_path):
    output = tmp_path / "questions.jsonl"
    output.write_text("mine\n")
    with pytest.raises(InputError, match="exists and was not drafted"):
        draft_questions(chunks, Model(), output, min_tokens=5)
    assert output.read_text() == "mine\n"
    output.unlink()
    draft_questions(chunks, Model(), output, min_tokens=5, count=1)
    other = Model()
    other.identity = {"model": "another"}
    with pytest.raises(InputError, match=r"was begun by model rule, not by model another; give the same"):
        draft_questions(chunks, other, output, min_tokens=5)
    for line in ('{"a": 1}', '{"writer": 1}'):
        (tmp_path / "x.attempts.jsonl").write_text(f"{line}\n")
        with pytest.raises(InputError, match="is no journal of `jora questions`"):
            draft_questions(chunks, Model(), tmp_path / "x.jsonl", min_tokens=5)
    with pytest.raises(InputError, match="No chunk of the index has 500 tokens; lower --min-tokens"):
        draft_questions(chunks, Model(), tmp_path / "y.jsonl", min_tokens=500)


@pytest.mark.parametrize("line", ['{"chunk_id": "x"}', '{"chunk_id": "x", "outcome": "kept"}', "[]"])
def test_a_line_of_the_journal_that_is_none_is_named(chunks, tmp_path, line):
    output = tmp_path / "questions.jsonl"
    draft_questions(chunks, Model(), output, min_tokens=5, count=1)
    journal = tmp_path / "questions.attempts.jsonl"
    number = len(journal.read_text().splitlines()) + 1
    with journal.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(InputError, match=rf"questions\.attempts\.jsonl:{number} is no attempt as"):
        draft_questions(chunks, Model(), output, min_tokens=5)


def test_questions_edited_by_hand_are_not_written_over(chunks, tmp_path):
    output = tmp_path / "questions.jsonl"
    draft_questions(chunks, Model(), output, min_tokens=5, count=2)
    edited = output.read_text().replace("What is", "Which is")
    output.write_text(edited)
    with pytest.raises(InputError, match="was changed since it was drafted"):
        draft_questions(chunks, Model(), output, min_tokens=5)
    assert output.read_text() == edited


def test_a_run_that_came_to_nothing_leaves_nothing(chunks, tmp_path):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RunStopped):
        draft_questions(chunks, Model(stop_after=0), tmp_path / "questions.jsonl", min_tokens=5)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_the_command_drafts_with_the_base_model(questions_command, tmp_path):
    output = tmp_path / "questions.jsonl"
    options = ("--output", output, "--max-new-tokens", 8)
    done = json.loads(questions_command(*options, "--json").stdout)
    assert done["attempted"] == done["chunks"] == 17
    assert done["kept"] + sum(done["refused"].values()) == 17
    assert "0 kept of 17 chunks attempted, 17 in all" in questions_command(*options).stdout
    wrong = questions_command(*options, "--endpoint", "http://127.0.0.1:9/v1")
    assert isinstance(wrong.exception, InputError) and "--model" in str(wrong.exception)
