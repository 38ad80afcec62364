import os
from pathlib import Path

import pytest

from jora_tasks.errors import InputError
from retrieval.files import is_document, local_files
from tests.retrieval.collecting import put, read


def test_hidden_files_are_left_out_and_loops_of_links_end(tmp_path):
    put(tmp_path, "a.txt", "a")
    put(tmp_path, ".hidden.txt", "no")
    put(tmp_path, ".git/b.txt", "no")
    put(tmp_path, "sub/c.txt", "c")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "sub" / "itself").symlink_to(tmp_path / "sub" / "itself")
    assert [file.name for file in local_files(tmp_path)] == ["a.txt", "sub/c.txt"]


def test_what_is_no_file_is_counted_with_its_reason(tmp_path):
    put(tmp_path, "a.txt", "a")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.md").symlink_to(tmp_path / "loop.md")
    os.mkfifo(tmp_path / "pipe.md")
    found = read(tmp_path)
    assert list(found.by_id) == ["a.txt"]
    assert (found.tally.files, found.tally.unreadable) == (4, 3)
    assert [reason.split(";")[0] for reason in found.reasons] == [
        "broken.txt is a link that leads nowhere",
        "loop.md is a link that leads nowhere",
        "pipe.md is no file but a pipe, a socket or a device",
    ]


def test_one_file_is_documents_enough(tmp_path):
    file = put(tmp_path, "a.jsonl", '{"text": "a"}\n{"text": "b"}')
    assert list(read(file).by_id) == ["a.jsonl:1", "a.jsonl:2"]


@pytest.mark.parametrize(
    ("name", "read_"),
    [
        ("a.MD", True),
        ("a/b.Zip", True),
        ("a.png", False),
        ("a", False),
        (".a.md", False),
        ("a/.b/c.md", False),
    ],
)
def test_kinds(name, read_):
    assert is_document(name) == read_


def test_empty_or_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no document; put \.txt"):
        local_files(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        local_files(tmp_path / "none")
    with pytest.raises(InputError, match="is not a folder or a file of a known kind"):
        local_files(put(tmp_path, "a.png", "x"))


def test_a_name_that_is_not_utf8_is_told_of(tmp_path):
    put(tmp_path, os.fsdecode(b"caf\xe9.txt"), "x")
    put(tmp_path, "a.txt", "a")
    assert read(tmp_path).reasons == [
        r"caf\udce9.txt has a path that is not UTF-8; rename the file or its folder."
    ]


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
        local_files(tmp_path)


def test_a_file_that_cannot_be_read_is_told_of(tmp_path, monkeypatch):
    put(tmp_path, "a.txt", "a")
    put(tmp_path, "b.txt", "b")
    opened = Path.open

    def closed(path, *arguments, **options):
        if path.name == "a.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", closed)
    found = read(tmp_path)
    assert list(found.by_id) == ["b.txt"]
    assert found.reasons == ["a.txt cannot be read (Permission denied); mend its permissions or remove it."]
