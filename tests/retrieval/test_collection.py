import re
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jora_tasks.errors import InputError
from tests.retrieval.collecting import put, read


def test_every_kind_of_text_file(tmp_path):
    put(tmp_path, "a/guide.md", "intro\n\n# Guide\n\ntext")
    put(tmp_path, "b.rst", "=====\nTitle\n=====\n\ntext")
    put(tmp_path, "c.txt", "\n First line \nmore")
    put(
        tmp_path, "d.html", "<title>Page</title><body><nav>menu</nav><main><h2>Limits</h2><p>Five.</p></main>"
    )
    put(tmp_path, "e.jsonl", '{"text": "one", "id": "x", "title": "X"}\n\n{"text": "three"}\n')
    put(tmp_path, "ignored.png", b"\xff")
    found = read(tmp_path)
    assert {document.id: document.title for document in found.documents} == {
        "a/guide.md": "Guide",
        "b.rst": "Title",
        "c.txt": "First line",
        "d.html": "Page",
        "x": "X",
        "e.jsonl:3": "e.jsonl:3",
    }
    assert found.by_id["d.html"].text == "## Limits\n\nFive.\n"
    assert found.by_id["x"].source == "e.jsonl"
    assert not found.unreadable


def test_an_id_given_twice_is_left_out_or_refused_with_both_places(tmp_path):
    put(tmp_path, "a.jsonl", '{"text": "x", "id": "1"}')
    put(tmp_path, "b.csv", "id,text\n7,y\n1,z\n")
    said = "b.csv:2: document id '1' is that of a.jsonl:1; give each document its own id."
    found = read(tmp_path)
    assert {each.id: each.text for each in found.documents} == {"1": "x", "7": "y"}
    assert [each.reason for each in found.unreadable] == [said]
    with pytest.raises(InputError, match=re.escape(said)):
        read(tmp_path, unreadable="error")


def test_empty_and_duplicate_documents_are_counted(tmp_path):
    put(tmp_path, "a.txt", "the same")
    put(tmp_path, "b.md", "the same")
    put(tmp_path, "c.txt", " \n")
    put(tmp_path, "d.csv", "text\nthe same\n \nother\n")
    kept = read(tmp_path)
    assert list(kept.by_id) == ["a.txt", "b.md", "d.csv:1", "d.csv:3"]
    assert (kept.tally.documents, kept.tally.duplicates, kept.tally.empty) == (4, 2, 2)
    dropped = read(tmp_path, duplicates="drop")
    assert list(dropped.by_id) == ["a.txt", "d.csv:3"]
    assert (dropped.tally.documents, dropped.tally.duplicates, dropped.tally.empty) == (2, 2, 2)


def test_what_cannot_be_read_is_told_of_or_fatal(tmp_path):
    put(tmp_path, "a.txt", "a")
    put(tmp_path, "b.jsonl", '{"text": "b"}\n{\n{"text": "c"}\n')
    found = read(tmp_path)
    assert list(found.by_id) == ["a.txt", "b.jsonl:1", "b.jsonl:3"]
    assert found.tally.unreadable == 1
    assert found.unreadable[0].source == "b.jsonl"
    with pytest.raises(InputError, match=r"b\.jsonl:2 is not JSON"):
        read(tmp_path, unreadable="error")


def test_folders_without_a_document_to_read_are_refused(tmp_path):
    put(tmp_path, "a.txt", " \n")
    with pytest.raises(InputError, match="are all empty"):
        read(tmp_path)
    put(tmp_path, "b.pdf", "x")
    with pytest.raises(InputError, match=r"no document that can be read: b\.pdf is not a PDF"):
        read(tmp_path)


texts = st.lists(
    st.sampled_from(["", " ", "one", "two", "e\u0301", "é", "1\r\n2", "1\n2"]), min_size=1, max_size=8
)


@settings(max_examples=40, deadline=None)
@given(texts)
def test_every_text_is_given_left_out_as_empty_or_a_duplicate(tmp_path_factory, given_texts):
    folder = tmp_path_factory.mktemp("documents")
    for number, text in zip(count(), given_texts, strict=False):
        put(folder, f"{number}.txt", text)
    full = [text for text in given_texts if text.strip()]
    if not full:
        with pytest.raises(InputError):
            read(folder)
        return
    kept, dropped = read(folder), read(folder, duplicates="drop")
    assert kept.tally.empty == dropped.tally.empty == len(given_texts) - len(full)
    assert kept.tally.documents == len(kept.documents) == len(full)
    assert kept.tally.duplicates == dropped.tally.duplicates == len(full) - len(dropped.documents)
    assert len({document.text for document in kept.documents}) == len(dropped.documents)
    assert kept.tally.characters == sum(len(document.text) for document in kept.documents)
    assert read(folder).documents == kept.documents
