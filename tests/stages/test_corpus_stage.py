from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jora_tasks.artifacts import ArtifactStore, digest_bytes
from jora_tasks.errors import InputError
from jora_tasks.progress import Progress
from jora_tasks.spec import parse_spec
from jora_tasks.stages.corpus import build_corpus, document_texts, read_documents


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "documents"
    (path / "sub").mkdir(parents=True)
    (path / "b.md").write_text("# Title\n\ntext")
    (path / "sub" / "a.txt").write_text("plain\r\ntext")
    return path


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "home")


def build(folder, store, events=None):
    spec = parse_spec({"documents": {"path": str(folder)}})
    sink = (events.append,) if events is not None else ()
    return build_corpus(spec, store, Progress(*sink))


def test_table(folder, store):
    events = []
    corpus = build(folder, store, events)
    table = pq.read_table(corpus.file("documents.parquet"))
    assert table.column_names == ["document_id", "source", "title", "text", "digest", "metadata"]
    rows = table.to_pylist()
    assert [(row["document_id"], row["title"], row["text"]) for row in rows] == [
        ("b.md", "Title", "# Title\n\ntext"),
        ("sub/a.txt", "plain", "plain\ntext"),
    ]
    assert all(row["digest"] == digest_bytes(row["text"].encode()) for row in rows)
    assert document_texts(corpus) == {row["document_id"]: row["text"] for row in rows}
    assert [(document.id, document.metadata) for document in read_documents(corpus)] == [
        ("b.md", {}),
        ("sub/a.txt", {}),
    ]
    assert corpus.counts["documents"] == 2
    assert (events[-1].stage, events[-1].done, events[-1].total) == ("corpus", 2, 2)


def test_unchanged_documents_are_not_read_again(folder, store):
    first = build(folder, store)
    events = []
    again = build(folder, store, events)
    assert (again.key, again.reused, events) == (first.key, True, [])
    (folder / ".hidden").write_text("x")
    (folder / "picture.png").write_bytes(b"x")
    assert build(folder, store).reused


def test_counts_say_what_changed_since_the_last_corpus(folder, store):
    first = build(folder, store)
    assert first.counts["added"] == 2
    store.set_latest("documents", first)
    (folder / "b.md").write_text("# Title\n\nother")
    (folder / "sub" / "a.txt").rename(folder / "c.txt")
    second = build(folder, store)
    assert second.key != first.key
    changes = {name: second.counts[name] for name in ("added", "updated", "removed", "unchanged")}
    assert changes == {"added": 1, "updated": 1, "removed": 1, "unchanged": 0}


def test_the_same_documents_elsewhere_make_the_same_corpus_without_a_local_path(folder, store, tmp_path):
    first = build(folder, store)
    moved = folder.rename(tmp_path / "moved")
    assert build(moved, store).key == first.key
    assert str(tmp_path) not in (first.path / "manifest.json").read_text()


def test_bad_documents_leave_nothing_behind(folder, store):
    (folder / "bad.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"bad\.jsonl:1"):
        build(folder, store)
    assert not [path for path in store.home.rglob("*") if path.is_file() and path.parent.name != "locks"]


def test_missing_folder_is_refused(store, tmp_path):
    with pytest.raises(InputError, match=r"documents\.path"):
        build(tmp_path / "none", store)
    assert not store.home.exists()


def test_a_document_that_cannot_be_read_is_named(folder, store, monkeypatch):
    opened = Path.open

    def closed(path, *arguments, **options):
        if path.name == "a.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(InputError, match=r"documents\.path .*a\.txt cannot be read \(Permission denied\)"):
        build(folder, store)
