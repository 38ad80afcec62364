import csv
import io
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.documents import normalise
from tests.retrieval.collecting import put, read

ROWS = [
    {"key": "k1", "name": "First", "body": "one, with a comma", "year": "2020", "note": None},
    {"key": "k2", "name": None, "body": 'two\nlines "quoted"', "year": "2021", "note": "n"},
]
NAMED = {
    "id_column": "key",
    "title_column": "name",
    "text_column": "body",
    "metadata_columns": ["year", "note"],
}


def write(folder, kind):
    if kind == "jsonl":
        put(folder, "t.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "parquet":
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(ROWS), folder / "t.parquet")
    else:
        file = io.StringIO()
        delimiter = {"csv": ",", "tsv": "\t", "semicolon.csv": ";"}[kind]
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
        put(folder, f"t.{kind}", file.getvalue())


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "semicolon.csv", "parquet"])
def test_named_columns(tmp_path, kind):
    write(tmp_path, kind)
    found = read(tmp_path, **NAMED)
    assert not found.unreadable
    assert [(d.id, d.title, d.text, d.metadata) for d in found.documents] == [
        ("k1", "First", "one, with a comma", {"year": "2020"}),
        ("k2", "k2", 'two\nlines "quoted"', {"year": "2021", "note": "n"}),
    ]
    assert found.documents[0].source == f"t.{kind}"


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize(
    ("setting", "column"),
    [("text_column", "words"), ("id_column", "number"), ("title_column", "t"), ("metadata_columns", "m")],
)
def test_a_table_without_a_named_column_is_told_of(tmp_path, kind, setting, column):
    write(tmp_path, kind)
    put(tmp_path, "z.txt", "z")
    value = [column] if setting == "metadata_columns" else column
    found = read(tmp_path, **{**NAMED, setting: value})
    assert list(found.by_id) == ["z.txt"]
    assert found.reasons == [
        f"t.{kind} has no column {column!r}; name one of its columns (key, name, body, year, note) in "
        f"documents.{setting}."
    ]


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("twice", ["text", "id", "title", "year"])
def test_a_table_with_two_columns_of_a_name_that_is_read_is_told_of(tmp_path, kind, twice):
    names = ["id", "title", "text", "year", "note", "note", twice]
    if kind == "parquet":
        pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 7, names=names), tmp_path / "t.parquet")
    else:
        delimiter = "," if kind == "csv" else "\t"
        put(tmp_path, f"t.{kind}", f"{delimiter.join(names)}\n{delimiter.join('abcdefg')}\n")
    put(tmp_path, "z.csv", "id,text,year,note,note\nz,words,2024,b,c\n")
    found = read(tmp_path, metadata_columns=["year"])
    assert list(found.by_id) == ["z"]
    assert found.reasons == [f"t.{kind} has 2 columns {twice!r}; give each its own name."]


def test_rows_without_an_id_have_that_of_their_place(tmp_path):
    put(tmp_path, "a.csv", "text\none\n\ntwo\n")
    pq.write_table(pa.table({"text": ["three", None, "four"], "id": [None, 5, 6]}), tmp_path / "b.parquet")
    found = read(tmp_path)
    assert list(found.by_id) == ["a.csv:1", "a.csv:3", "b.parquet:1", "6"]
    assert found.reasons == [
        "b.parquet:2 has no text: 'text' must hold it; name the column that does in documents.text_column."
    ]


def test_metadata_of_json_rows(tmp_path):
    row = {"text": "x", "metadata": {"year": 2020, "draft": False, "none": None}, "lang": "de"}
    put(tmp_path, "a.jsonl", json.dumps(row))
    assert read(tmp_path, metadata_columns=["lang"]).documents[0].metadata == {
        "year": "2020",
        "draft": "false",
        "lang": "de",
    }


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"title": "x"}', r"a.jsonl:2 has no text"),
        ('["x"]', r"a.jsonl:2 has no text"),
        ("{", r"a.jsonl:2 is not JSON that can be read (Expecting property name"),
        ("[" * 100_000, r"a.jsonl:2 is not JSON that can be read (nested too deeply"),
        ("1" * 5000, r"a.jsonl:2 is not JSON that can be read (Exceeds the limit"),
        ('{"text": "x", "id": 7.5}', r"a.jsonl:2: id must be text"),
        ('{"text": "x", "title": " "}', r"a.jsonl:2: title must be text"),
        ('{"text": "x", "metadata": [1]}', r"a.jsonl:2: metadata must be a mapping"),
        ('{"text": "x", "metadata": {"a": [1]}}', r"a.jsonl:2: metadata 'a' must be text"),
        ('{"text": "x\\ud800"}', r"a.jsonl:2 has half of a surrogate pair, '\ud800'"),
        ('{"text": "x", "id": "\\udc00"}', r"a.jsonl:2 has half of a surrogate pair"),
        ('{"text": "x\\u0000y"}', r"a.jsonl:2 has a zero character"),
        ('{"text": "' + "x" * (1 << 20) + '"}', r"a.jsonl:2 is longer than documents.max_file_mib (1)"),
        ("x" * (3 << 20), r"a.jsonl:2 is longer than documents.max_file_mib (1)"),
    ],
)
def test_a_bad_row_is_told_of_and_the_next_ones_are_read(tmp_path, line, reason):
    put(tmp_path, "a.jsonl", f'{{"text": "a"}}\n{line}\n{{"text": "\\ud83d\\ude00 \u2028 c"}}')
    found = read(tmp_path, max_file_mib=1)
    assert [document.text for document in found.documents] == ["a", "\U0001f600 \u2028 c"]
    assert len(found.reasons) == 1
    assert found.reasons[0].startswith(reason)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("text\nfine\n" + '"never closed\n' * 3, "a.csv cannot be read beyond row 1 ("),
        ("text\nfine\na,b\n", "a.csv:2 has 2 cells under 1 columns; put text with"),
        ("text\nfine\n" + "x" * (2 << 20), "a.csv line 3 is longer than documents.max_file_mib (1)"),
        ('text\nfine\n"' + "x\n" * (1 << 20) + '"', "a.csv cannot be read beyond row 1 (field larger"),
        ("", "a.csv is empty; give it a header and rows, or remove it."),
    ],
)
def test_a_broken_table_is_told_of(tmp_path, content, reason):
    put(tmp_path, "a.csv", content)
    put(tmp_path, "b.txt", "b")
    found = read(tmp_path, max_file_mib=1)
    assert [document.text for document in found.documents] == (["fine", "b"] if content else ["b"])
    assert len(found.reasons) == 1
    assert found.reasons[0].startswith(reason)


@pytest.mark.parametrize("damage", ["footer", "middle", "none of it"])
def test_a_damaged_parquet_file_is_told_of(tmp_path, damage):
    write(tmp_path, "parquet")
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    if damage == "footer":
        data = data[:-20]
    elif damage == "middle":
        data[4:200] = bytes(196)
    else:
        data = bytearray(b"nonsense")
    put(tmp_path, "t.parquet", bytes(data))
    put(tmp_path, "b.txt", "b")
    found = read(tmp_path, **NAMED)
    assert list(found.by_id) == ["b.txt"]
    assert "t.parquet is not Parquet that can be read (" in found.reasons[0]


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@settings(max_examples=40, deadline=None)
@given(st.lists(cells, min_size=1, max_size=5))
def test_the_same_rows_of_every_kind_of_table_give_the_same_texts(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("tables")
    texts = [f"{number}{text}x" for number, text in enumerate(texts)]
    put(folder, "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    pq.write_table(pa.table({"text": texts}), folder / "b.parquet")
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["text"], *([text] for text in texts)])
    put(folder, "c.csv", file.getvalue())
    found = read(folder)
    wanted = [normalise(text) for text in texts]
    for kind in ("jsonl", "parquet", "csv"):
        assert [d.text for d in found.documents if d.source.endswith(kind)] == wanted


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_line_of_a_gibibyte_does_not_fill_the_memory(tmp_path, name):
    """Read in a process that may have 1 GiB of addresses; the line is a sparse file's."""
    file = put(tmp_path, name, '{"text": "a"}\n' if name == "a.jsonl" else "text\na\n")
    with file.open("ab") as grown:
        grown.write(b"x")
        grown.truncate((1 << 30) + 100)
    put(tmp_path, "b.txt", "b")
    room = 1 << 30
    code = (
        "import resource, sys; from pathlib import Path\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({room}, {room}))\n"
        "from tests.retrieval.collecting import read\n"
        "found = read(Path(sys.argv[1]))\n"
        "print(list(found.by_id), found.reasons)"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "b.txt" in result.stdout
    assert name in result.stdout.partition("]")[2]
