import os
from pathlib import Path

import pytest

from jora_tasks.errors import InputError
from retrieval.documents import load_documents


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_every_kind_of_file(tmp_path):
    put(tmp_path, "a/guide.md", "intro\n\n# Guide\n\ntext")
    put(tmp_path, "b.rst", "=====\nTitle\n=====\n\ntext")
    put(tmp_path, "c.txt", "\n First line \nmore")
    put(
        tmp_path, "d.html", "<title>Page</title><body><nav>menu</nav><main><h2>Limits</h2><p>Five.</p></main>"
    )
    put(tmp_path, "e.jsonl", '{"text": "one", "id": "x", "title": "X"}\n\n{"text": "three"}\n')
    put(tmp_path, "ignored.pdf", b"%PDF\xff")
    documents = {document.id: document for document in load_documents(tmp_path)}
    assert list(documents) == ["a/guide.md", "b.rst", "c.txt", "d.html", "e.jsonl:3", "x"]
    assert {id_: document.title for id_, document in documents.items()} == {
        "a/guide.md": "Guide",
        "b.rst": "Title",
        "c.txt": "First line",
        "d.html": "Page",
        "e.jsonl:3": "e.jsonl:3",
        "x": "X",
    }
    assert documents["d.html"].text == "## Limits\n\nFive.\n"
    assert documents["x"].source == "e.jsonl"


def test_text_is_nfc_with_plain_newlines_and_no_byte_order_mark(tmp_path):
    put(tmp_path, "a.txt", "\ufeffcafe\u0301\r\nb\rc")
    assert load_documents(tmp_path)[0].text == "caf\u00e9\nb\nc"


def test_line_separators_inside_json_text_do_not_end_a_row(tmp_path):
    put(tmp_path, "a.jsonl", '{"text": "one\u2028two"}')
    assert load_documents(tmp_path)[0].text == "one\u2028two"


def test_hidden_files_are_left_out_and_symlink_loops_end(tmp_path):
    put(tmp_path, "a.txt", "a")
    put(tmp_path, ".hidden.txt", "no")
    put(tmp_path, ".git/b.txt", "no")
    put(tmp_path, "sub/c.txt", "c")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere")
    assert [document.id for document in load_documents(tmp_path)] == ["a.txt", "sub/c.txt"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", r"a\.txt is not UTF-8 text \(byte 3\)"),
        ("a.jsonl", '{"text": "x"}\n{"text": ', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", '{"title": "x"}', r"a\.jsonl:1 has no text"),
        ("a.jsonl", '["x"]', r"a\.jsonl:1 has no text"),
        ("a.jsonl", '{"text": "x", "id": 7}', r"a\.jsonl:1: id must be text"),
        ("a.jsonl", '{"text": "x", "id": "1"}\n{"text": "y", "id": "1"}', r"a\.jsonl:2: document id '1'"),
        ("a.jsonl", '{"text": "x"}\n' + "[" * 100_000, r"a\.jsonl:2 .*nested too deeply"),
        ("a.jsonl", '{"text": "x\\ud800"}', r"a\.jsonl:1 has half of a surrogate pair, '\\ud800'"),
        ("a.jsonl", '{"text": "x", "id": "\\udc00"}', r"a\.jsonl:1 has half of a surrogate pair"),
        (os.fsdecode(b"caf\xe9.txt"), "x", r"'caf\\udce9\.txt' is not UTF-8; rename"),
        ("a.txt", " \n", r"are all empty"),
        ("a.pdf", "x", r"holds no document"),
    ],
)
def test_bad_documents_are_refused_by_name(tmp_path, name, content, message):
    put(tmp_path, name, content)
    with pytest.raises(InputError, match=message):
        load_documents(tmp_path)


def test_empty_or_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no document"):
        load_documents(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        load_documents(tmp_path / "none")


def test_whole_surrogate_pairs_are_read(tmp_path):
    put(tmp_path, "a.jsonl", '{"text": "\\ud83d\\ude00"}')
    assert load_documents(tmp_path)[0].text == "\U0001f600"


@pytest.mark.parametrize("closed", ["sub", "."])
def test_a_folder_that_cannot_be_listed_is_refused_by_name(tmp_path, monkeypatch, closed):
    put(tmp_path, "a.txt", "a")
    put(tmp_path, "sub/b.txt", "b")
    scandir = os.scandir

    def guarded(path):
        if Path(path) == tmp_path / closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    name = str(tmp_path / closed)
    with pytest.raises(InputError, match=rf"documents\.path .*{name} cannot be read \(Permission denied\)"):
        load_documents(tmp_path)


@pytest.mark.parametrize("method", ["is_file", "open"])
def test_a_file_that_cannot_be_reached_or_read_is_refused_by_name(tmp_path, monkeypatch, method):
    put(tmp_path, "a.txt", "a")

    def closed(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, method, closed)
    with pytest.raises(InputError, match=r"a\.txt cannot be read \(Permission denied\)"):
        load_documents(tmp_path)
