"""Datasets: formats, marks, and errors that name the example, file and line."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jora_tasks.errors import InputError
from jora_tasks.trainer.data import Dataset, Example, Skipped, load_dataset


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """A byte-level tokenizer with an end-of-turn token and a small chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    settings = {"eos_token": "<end>", "chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 256}))
    return folder


def _text(folder, ids):
    from jora_tasks.trainer.tokenizer import load_tokenizer

    return load_tokenizer(folder).decode(list(map(int, ids)))


RECORDS = {
    "alpaca": {"instruction": "Add.", "input": "1 2", "output": "3"},
    "question": {"question": "Add.\n\n1 2", "answers": ["3", "three"]},
    "answer": {"question": "Add.\n\n1 2", "answer": "3"},
    "messages": {
        "messages": [{"role": "user", "content": "Add.\n\n1 2"}, {"role": "assistant", "content": "3"}]
    },
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize("form", ["list", "lines"])
def test_every_format_gives_the_same_example(record, form, tokenizer_folder, tmp_path):
    file = tmp_path / "data"
    file.write_text(json.dumps([record]) if form == "list" else json.dumps(record) + "\n\n")
    (example,) = load_dataset(file, tokenizer_folder).examples
    assert example.id == "1"
    answer = example.input_ids[example.scored]
    prompt = example.input_ids[~example.scored]
    assert _text(tokenizer_folder, answer).startswith("3")
    assert "1 2" in _text(tokenizer_folder, prompt)
    assert not example.scored[: len(prompt)].any()


def test_ids_are_kept(tokenizer_folder, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"id": "x7", **RECORDS["answer"]}))
    assert load_dataset(file, tokenizer_folder).examples[0].id == "x7"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"question": "a", "answer": "b"}\n{"question": ', r"\.json:2 is not JSON"),
        ('[{"instruction": "a", "output": "b"},\n{"instruction"}]', r"\.json:2 is not JSON"),
        ('[{"instruction": "a", "output": "b"}, {"instruction": "a"}]', "item 2: output is missing"),
        ('{"question": "a", "answers": []}', r"\.json:1: answers must be a list"),
        ('{"question": "a", "answers": [3]}', r"\.json:1: answer is not text"),
        ('{"question": "a", "answer": " "}', r"\.json:1: answer is missing or empty"),
        ('{"text": "a"}', r"\.json:1: fields text"),
        ('{"messages": [{"role": "user", "content": "a"}]}', r"\.json:1: messages must end"),
        ('{"messages": "hello"}', r"\.json:1: messages must be a list"),
        ("3\n", r"\.json:1: a int, not an object"),
        ("", "has no records"),
        ('{"question": "a", "answer": "b"}\n' + "[" * 100_000, r"\.json:2 .*nested too deeply"),
        ("[" * 100_000, r"\.json .*nested too deeply"),
        ('{"question": "\\ud800", "answer": "b"}', r"\.json:1 has half of a surrogate pair"),
        ('[{"question": "a", "answer": "\\udc00"}]', "item 1 has half of a surrogate pair"),
        ('{"id": ' + "9" * 5000 + "}", r"\.json:1 .*4300 digits"),
    ],
)
def test_bad_records_are_named(text, expected, tokenizer_folder, tmp_path):
    file = tmp_path / "data.json"
    file.write_text(text)
    with pytest.raises(InputError, match=expected) as error:
        load_dataset(file, tokenizer_folder)
    assert str(file) in str(error.value)


def test_missing_and_binary_files_are_named(tokenizer_folder, tmp_path):
    with pytest.raises(InputError, match=r"absent\.json cannot be read \(No such file"):
        load_dataset(tmp_path / "absent.json", tokenizer_folder)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not UTF-8"):
        load_dataset(tmp_path / "binary", tokenizer_folder)
    with pytest.raises(InputError, match="is not a path"):
        load_dataset("data\0.json", tokenizer_folder)


def test_a_byte_order_mark_and_line_separators_in_text_are_no_harm(tokenizer_folder, tmp_path):
    file = tmp_path / "data.jsonl"
    row = json.dumps({"question": "a\u2028b", "answer": "c", "id": None}, ensure_ascii=False)
    file.write_text(f"\ufeff{row}\r\n{row}\n", encoding="utf-8")
    assert [example.id for example in load_dataset(file, tokenizer_folder).examples] == ["1", "2"]


def test_the_longest_of_too_long_examples_is_an_error_with_its_place(tokenizer_folder, tmp_path):
    file = tmp_path / "data.jsonl"
    answers = ("yes", "yes " * 20, "yes " * 30)
    rows = [{"id": f"e{number}", "question": "?", "answer": answer} for number, answer in enumerate(answers)]
    file.write_text("\n".join(map(json.dumps, rows)))
    whole = load_dataset(file, tokenizer_folder)
    short, middle, long = (len(example.input_ids) for example in whole.examples)
    assert short < middle < long
    words = rf"\.jsonl:3: example e2 has {long} tokens, but max_length is {short} and 1 more are too long;"
    with pytest.raises(InputError, match=words):
        load_dataset(file, tokenizer_folder, max_length=short)
    kept = load_dataset(file, tokenizer_folder, max_length=short, long_examples="skip")
    assert [example.id for example in kept.examples] == ["e0"]
    assert kept.skipped == (Skipped("e1", middle), Skipped("e2", long))
    with pytest.raises(
        InputError, match=r":3: example e2 .* and 2 more are too long; shorten what is longer\.$"
    ):
        load_dataset(file, tokenizer_folder, max_length=2, long_examples="skip")


def test_marks_by_prompt_length_and_by_mask():
    by_length = Example.make("a", [5, 6, 7], prompt_length=1)
    by_mask = Example.make("a", [5, 6, 7], scored=[False, True, True])
    np.testing.assert_array_equal(by_length.scored, by_mask.scored)
    assert by_length.input_ids.dtype == np.int32


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"prompt_length": 3}, "example e has no scored token"),
        ({}, "example e has no scored token"),
        ({"scored": [False] * 3}, "example e has no scored token"),
        ({"prompt_length": 0}, "example e scores its first token"),
        ({"scored": [True]}, "example e: 1 scored marks for 3 tokens"),
    ],
)
def test_unusable_examples_are_named(arguments, expected):
    with pytest.raises(InputError, match=expected):
        Example.make("e", [1, 2, 3], **arguments)


def test_datasets_need_examples_with_their_own_ids():
    example = Example.make("a", [1, 2], prompt_length=1)
    with pytest.raises(InputError, match="no examples"):
        Dataset(())
    with pytest.raises(InputError, match="example a appears twice"):
        Dataset((example, example))


def test_the_digest_depends_on_every_part():
    def digest(**changes):
        parts = {"id": "a", "input_ids": [1, 2, 3], "prompt_length": 1} | changes
        return Dataset((Example.make(parts.pop("id"), parts.pop("input_ids"), **parts),)).digest

    assert digest() == digest()
    assert len({digest(), digest(id="b"), digest(input_ids=[1, 2, 4]), digest(prompt_length=2)}) == 4


def _prompts(path, rows):
    schema = pa.schema(
        [
            ("example_id", pa.string()),
            ("split", pa.string()),
            ("input_ids", pa.list_(pa.int32())),
            ("prompt_length", pa.int32()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def test_prompts_of_one_split(tmp_path):
    file = tmp_path / "prompts.parquet"
    rows = [
        {"example_id": name, "split": split, "input_ids": [1, 2, 3], "prompt_length": 2}
        for name, split in (("a", "train"), ("b", "test"), ("c", "train"))
    ]
    _prompts(file, rows)
    assert [example.id for example in Dataset.from_prompts(file).examples] == ["a", "c"]
    assert [example.id for example in Dataset.from_prompts(file, "test").examples] == ["b"]
    with pytest.raises(InputError, match="no example of split 'dev'"):
        Dataset.from_prompts(file, "dev")


def test_a_prompt_without_an_answer_is_named(tmp_path):
    file = tmp_path / "prompts.parquet"
    _prompts(file, [{"example_id": "a", "split": "train", "input_ids": [1, 2], "prompt_length": 2}])
    with pytest.raises(InputError, match="example a has no scored token"):
        Dataset.from_prompts(file)


def test_a_file_that_is_not_prompts_is_named(tmp_path):
    (tmp_path / "prompts.parquet").write_text("no parquet")
    with pytest.raises(InputError, match=r"prompts\.parquet: .* `jora prompts`"):
        Dataset.from_prompts(tmp_path / "prompts.parquet")
