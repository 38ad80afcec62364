import json
import subprocess
import sys
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.errors import InputError, RunStopped
from jora_tasks.progress import Progress
from jora_tasks.spec import parse_spec
from jora_tasks.stages.corpus import UNREADABLE, build_corpus, document_texts, read_documents
from retrieval.documents import document_digest
from tests.retrieval.loaders.office import pdf


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


def build(folder, store, events=None, **settings):
    spec = parse_spec({"documents": {"path": str(folder), **settings}})
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
    assert [row["digest"] for row in rows] == [document_digest(each) for each in read_documents(corpus)]
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
    (folder / "bad.jsonl").write_text('{"text": "x"}\n{')
    with pytest.raises(InputError, match=r"bad\.jsonl:2"):
        build(folder, store, unreadable="error")
    (folder / "bad.jsonl").write_text('{"text": "x", "id": "b.md"}')
    with pytest.raises(InputError, match=r"bad\.jsonl:1: document id 'b\.md' is that of b\.md"):
        build(folder, store, unreadable="error")
    assert not [path for path in store.home.rglob("*") if path.is_file() and path.parent.name != "locks"]


def test_what_cannot_be_read_is_in_the_manifest_and_a_table(folder, store):
    (folder / "bad.jsonl").write_text('{"text": "x"}\n{')
    (folder / "c.pdf").write_bytes(b"%PDF nonsense")
    (folder / "d.txt").write_text(" ")
    (folder / "e.txt").write_text("# Title\n\ntext")
    corpus = build(folder, store)
    rows = pq.read_table(corpus.file(UNREADABLE)).to_pylist()
    assert [row["source"] for row in rows] == ["bad.jsonl", "c.pdf"]
    assert corpus.counts["first_unreadable"] == [row["reason"] for row in rows]
    counts = {
        name: corpus.counts[name] for name in ("files", "documents", "empty", "duplicates", "unreadable")
    }
    assert counts == {"files": 6, "documents": 4, "empty": 1, "duplicates": 1, "unreadable": 2}
    with pytest.raises(InputError, match=r"bad\.jsonl:2"):
        build(folder, store, unreadable="error")


def test_the_settings_that_decide_the_content_decide_the_key(folder, store):
    first = build(folder, store)
    assert build(folder, store, unreadable="error").key == first.key
    for other in ({"duplicates": "drop"}, {"text_column": "body"}, {"encoding": "cp1250"}):
        assert build(folder, store, **other).key != first.key


def test_going_back_to_an_earlier_state_says_what_changed(folder, store):
    first = build(folder, store)
    store.set_latest("documents", first)
    (folder / "c.txt").write_text("new")
    store.set_latest("documents", build(folder, store))
    (folder / "c.txt").unlink()
    again = build(folder, store)
    assert (again.key, again.digest, again.reused) == (first.key, first.digest, True)
    assert {name: again.counts[name] for name in ("added", "updated", "removed", "unchanged")} == {
        "added": 0,
        "updated": 0,
        "removed": 1,
        "unchanged": 2,
    }
    assert first.counts["added"] == store.get("corpus", first.key).counts["added"] == 2


def test_a_new_title_or_metadata_is_an_update(folder, store):
    rows = {"id": "x", "text": "same", "title": "one", "metadata": {"year": "1"}}
    for changed in ({}, {"title": "two"}, {"metadata": {"year": "2"}}, {}):
        (folder / "r.jsonl").write_text(json.dumps(rows | changed))
        corpus = build(folder, store)
        store.set_latest("documents", corpus)
        assert corpus.counts["updated"] == (1 if changed or corpus.reused else 0)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["one", "two", "three"]), min_size=1),
        min_size=2,
        max_size=4,
    )
)
def test_counts_of_changes_after_any_edits(tmp_path_factory, states):
    root = tmp_path_factory.mktemp("edits")
    store, before = ArtifactStore(root / "home"), {}
    for number, now in enumerate(states):
        folder = root / f"documents-{number}"
        folder.mkdir()
        for name, text in now.items():
            (folder / f"{name}.txt").write_text(text)
        corpus = build(folder, store)
        store.set_latest("documents", corpus)
        assert {name: corpus.counts[name] for name in ("added", "updated", "removed", "unchanged")} == {
            "added": len(now.keys() - before.keys()),
            "updated": sum(before.get(name, text) != text for name, text in now.items()),
            "removed": len(before.keys() - now.keys()),
            "unchanged": sum(before.get(name) == text for name, text in now.items()),
        }
        assert document_texts(corpus) == {f"{name}.txt": text for name, text in now.items()}
        before = now


def test_documents_behind_a_url(folder, store):
    system = fsspec.filesystem("memory")
    system.put(str(folder), "/corpus-stage/handbook", recursive=True)
    try:
        remote = build("memory://corpus-stage/handbook", store)
        assert remote.manifest["inputs"]["documents"]["name"] == "handbook"
        assert document_texts(remote) == document_texts(build(folder, store))
        assert build("memory://corpus-stage/handbook", store).reused
    finally:
        system.rm("/corpus-stage", recursive=True)


def test_a_file_that_changes_while_it_is_read_stops_the_run(folder, store, monkeypatch):
    from retrieval import collection

    load_file = collection.load_file

    def meddled(file, config, cache):
        yield from load_file(file, config, cache)
        if file.name == "b.md":
            file.path.write_text("changed meanwhile")

    with monkeypatch.context() as patch:
        patch.setattr(collection, "load_file", meddled)
        with pytest.raises(RunStopped, match=r"b\.md changed while it was read; run this again"):
            build(folder, store)
    assert not list((store.home / "artifacts" / "corpus").glob("*"))
    assert document_texts(build(folder, store))["b.md"] == "changed meanwhile"


def test_a_pdf_is_read_once_whatever_becomes_of_the_run(folder, store, monkeypatch):
    from pypdf import PageObject

    extract, pages = PageObject.extract_text, []

    def counted(page, *arguments, **options):
        pages.append(page)
        if "killed" in (text := extract(page, *arguments, **options)):
            raise KeyboardInterrupt
        return text

    monkeypatch.setattr(PageObject, "extract_text", counted)
    (folder / "a.pdf").write_bytes(pdf("one", "two"))
    (folder / "b.pdf").write_bytes(pdf("killed here"))
    with pytest.raises(KeyboardInterrupt):
        build(folder, store)
    assert len(pages) == 3
    (folder / "b.pdf").rename(folder / "b.pdf.off")
    (folder / "a.pdf").rename(folder / "moved.pdf")
    corpus = build(folder, store)
    assert len(pages) == 3
    assert document_texts(corpus)["moved.pdf"] == "one\n\ntwo"
    assert document_texts(build(folder, store, max_file_mib=50)) == document_texts(corpus)
    assert len(pages) == 5


def test_killed_while_writing_leaves_no_corpus_and_the_next_run_makes_it(folder, tmp_path):
    for number in range(300):
        (folder / f"{number}.txt").write_text(f"text {number} " * 6000)
    home = tmp_path / "home"
    code = (
        "import os, signal, sys\n"
        "from jora_tasks.artifacts import ArtifactStore\n"
        "from jora_tasks.progress import Progress\n"
        "from jora_tasks.spec import parse_spec\n"
        "from jora_tasks.stages import corpus\n"
        "add, seen = corpus.TableWriter.add, []\n"
        "def killed(self, row, size=0):\n"
        "    add(self, row, size)\n"
        "    seen.append(row)\n"
        "    if len(seen) == 200: os.kill(os.getpid(), signal.SIGKILL)\n"
        "corpus.TableWriter.add = killed\n"
        "spec = parse_spec({'documents': {'path': sys.argv[1]}})\n"
        "corpus.build_corpus(spec, ArtifactStore(sys.argv[2]), Progress())\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, folder, home], capture_output=True, timeout=120)
    assert killed.returncode == -9, killed.stderr
    left = list((home / "artifacts" / "corpus").iterdir())
    assert [path.name[0] for path in left] == ["."]  # no artifact yet
    corpus = build(folder, ArtifactStore(home))
    assert corpus.counts["documents"] == 302
    assert list((home / "artifacts" / "corpus").iterdir()) == [corpus.path]


def test_missing_folder_is_refused(store, tmp_path):
    with pytest.raises(InputError, match=r"documents\.path"):
        build(tmp_path / "none", store)
    assert not store.home.exists()


def test_a_file_without_permission_is_told_of_and_read_once_it_has_it(folder, store, monkeypatch):
    opened = Path.open

    def closed(path, *arguments, **options):
        if path.name == "a.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", closed)
        corpus = build(folder, store)
    assert corpus.counts["first_unreadable"] == [
        "sub/a.txt cannot be read (Permission denied); mend its permissions or remove it."
    ]
    assert build(folder, store).counts["documents"] == 2
