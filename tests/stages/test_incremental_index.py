"""An index that follows its documents is the index that a fresh start would make of them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.progress import Progress
from jora_tasks.spec import parse_spec
from jora_tasks.stages.corpus import build_corpus
from jora_tasks.stages.embed import embed_shard
from jora_tasks.stages.index import build_index
from retrieval.index import Index

NAMES = ["a.md", "b.md", "c.txt", "d/e.md"]
BODIES = ["the option", "default 12", "heading of a longer text, and more words in it", "zebra 0 1 2", ""]
documents = st.lists(st.sampled_from(BODIES), min_size=1, max_size=3).map(
    lambda bodies: "".join(f"# Part {number}\n\n{body}\n\n" for number, body in enumerate(bodies))
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from(NAMES), documents),  # adds, edits, or changes nothing
        st.tuples(st.just("delete"), st.sampled_from(NAMES), st.none()),
        st.tuples(st.just("rename"), st.sampled_from(NAMES), st.sampled_from(NAMES)),
    ),
    min_size=1,
    max_size=5,
)


class Line:
    """A folder of documents and a home that follows it."""

    def __init__(self, folder: Path, embedder: Path, **index) -> None:
        self.documents, self.home = folder / "documents", folder / "home"
        self.documents.mkdir(parents=True)
        self._index = {"embedder": str(embedder), "chunk_tokens": 40, **index}
        # never without a document, nor without text
        self.write("always.md", "# Always\n\nsome text")

    def write(self, name: str, text: str) -> None:
        file = self.documents / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    def apply(self, kind: str, name: str, argument: str | None) -> None:
        file = self.documents / name
        if kind == "write":
            self.write(name, argument or "")
        elif file.exists() and kind == "delete":
            file.unlink()
        elif file.exists():
            (self.documents / str(argument)).parent.mkdir(exist_ok=True)
            file.rename(self.documents / str(argument))

    def spec(self, **index):
        return parse_spec({"documents": {"path": str(self.documents)}, "index": {**self._index, **index}})

    def build(self, home: Path | None = None, **index):
        store, spec = ArtifactStore(home or self.home), self.spec(**index)
        corpus = build_corpus(spec, store, Progress())
        built = build_index(spec, corpus, store, Progress())
        store.set_latest(spec.name, corpus)
        store.set_latest(spec.name, built)
        return built


def found(index) -> list[list[tuple[str, str, float]]]:
    """Ids, texts and scores of what questions find."""
    rng = np.random.default_rng(0)
    opened = Index(index.path)
    questions = rng.normal(size=(8, opened.identity.dimension)).astype(np.float32)
    questions /= np.linalg.norm(questions, axis=1, keepdims=True)
    return [
        [(opened.chunks[row].id, opened.chunks[row].text, score) for row, score in hits]
        for hits in opened.search(questions, 10)
    ]


def check_ids(index) -> None:
    """Each row's vector is that of its chunk and no other's."""
    opened = Index(index.path)
    for row, chunk in enumerate(opened.chunks):
        vector = opened._index.reconstruct(row)
        (hits,) = opened.search(vector[None], len(opened.chunks))
        assert hits[0][1] == pytest.approx(1, abs=0.02)
        assert row in [each for each, score in hits if score > hits[0][1] - 1e-5], chunk


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=st.lists(steps, min_size=1, max_size=3))
def test_after_any_changes_the_index_is_that_of_a_fresh_start(history, stage_embedders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    line = Line(folder, stage_embedders[0])
    line.build()
    for number, changes in enumerate(history):
        for change in changes:
            line.apply(*change)
        index, fresh = line.build(), line.build(folder / f"fresh-{number}")
        assert found(index) == found(fresh)
        assert index.digest == fresh.digest  # every file of it, bit for bit
        check_ids(index)
        told = index.counts
        assert told["chunks_embedded"] + told["chunks_reused"] == told["chunks"]


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    history=st.lists(steps, min_size=1, max_size=2), kind=st.sampled_from(["ivf_flat", "ivf_sq8", "HNSW8"])
)
def test_approximate_types_keep_their_recall_through_changes(
    history, kind, stage_embedders, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("line")
    line = Line(folder, stage_embedders[0], type=kind, recall_target=0.9)
    for number in range(40):
        line.write(f"more-{number}.txt", f"{number} zebra {number * 7919} option {'x' * (number % 5)}")
    line.build()
    for number, changes in enumerate(history):
        for change in changes:
            line.apply(*change)
        index = line.build()
        approximate = Index(index.path)
        exact = Index(line.build(folder / f"exact-{number}", type="flat").path)
        assert list(approximate.chunks) == list(exact.chunks)
        vectors = exact._index.reconstruct_n(0, len(exact.chunks))
        cosines = vectors @ vectors.T
        shares = []
        for row, hits in enumerate(approximate.search(vectors, 11)):
            for other, score in hits:  # no id is another's
                assert score == pytest.approx(cosines[row, other], abs=0.03)
            tenth = np.sort(np.delete(cosines[row], row))[-10]
            others = [other for other, _ in hits if other != row][:10]
            shares.append(np.mean([cosines[row, other] >= tenth - 1e-5 for other in others] or [0]))
        assert np.mean(shares) >= 0.9
        assert index.counts["recall_at_10"] == pytest.approx(np.mean(shares), abs=0.02)


def test_counts_tell_what_changed_and_what_it_cost(stage_embedders, tmp_path):
    line = Line(tmp_path, stage_embedders[0])
    line.write("a.md", "# A\n\nthe option")
    line.write("b.md", "# B\n\nthe default")
    first = line.build().counts
    assert (first["added"], first["chunks_embedded"], first["chunks_reused"]) == (3, 3, 0)
    line.write("b.md", "# B\n\nanother default")
    line.write("c.md", "# C\n\nzebra")
    (line.documents / "a.md").unlink()
    second = line.build().counts
    assert [second[name] for name in ("added", "updated", "removed", "unchanged")] == [1, 1, 1, 1]
    assert (second["chunks_embedded"], second["chunks_reused"]) == (2, 1)
    (line.documents / "c.md").rename(line.documents / "moved.md")
    line.write("copy.md", "# C\n\nzebra")
    third = line.build().counts
    assert (third["added"], third["removed"], third["chunks_embedded"], third["chunks_reused"]) == (
        2,
        1,
        0,
        4,
    )
    line.write("b.md", "# B\n\nthe default")
    assert line.build().counts["chunks_embedded"] == 0  # what was there before is still known


def test_shards_embed_everything_once_and_the_index_finds_it(stage_embedders, tmp_path):
    line = Line(tmp_path, stage_embedders[0], shards=3)
    for number in range(12):
        line.write(f"{number}.txt", f"option {number}")
    alone = line.build(tmp_path / "alone")
    store = ArtifactStore(line.home)
    corpus = build_corpus(line.spec(), store, Progress())
    parts = [embed_shard(line.spec(), corpus, store, Progress(), shard) for shard in range(3)]
    assert sum(part["documents"] for part in parts) == 13
    assert all(part["documents"] for part in parts)
    index = line.build()
    assert (index.counts["chunks_embedded"], index.counts["chunks_reused"]) == (0, 13)
    assert index.digest == alone.digest


def test_int8_vectors_tell_how_close_they_are(stage_embedders, tmp_path):
    line = Line(tmp_path, stage_embedders[0])
    exact = line.build()
    assert "cosine_to_float32" not in exact.counts
    quantised = line.build(backend="onnx_int8")
    assert quantised.key != exact.key
    assert 0.9 < quantised.counts["cosine_to_float32"]["min"] < 1
    assert line.build(tmp_path / "fresh", backend="onnx_int8").digest == quantised.digest


KILLED = """
import os, signal, sys
from pathlib import Path
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.progress import Progress
from jora_tasks.spec import parse_spec
from jora_tasks.stages.corpus import build_corpus
from jora_tasks.stages.index import build_index

documents, embedder, home = sys.argv[1:]
spec = parse_spec({"documents": {"path": documents},
                   "index": {"embedder": embedder, "chunk_tokens": 40, "batch_tokens": 1}})
store = ArtifactStore(home)

def die(event):
    if event.stage == "index" and event.unit == "chunks embedded" and event.done == 20:
        os.kill(os.getpid(), signal.SIGKILL)

build_index(spec, build_corpus(spec, store, Progress()), store, Progress(die))
"""


@pytest.mark.slow
def test_a_build_killed_while_embedding_goes_on_from_there(stage_embedders, tmp_path):
    line = Line(tmp_path, stage_embedders[0], batch_tokens=1)
    for number in range(40):
        line.write(f"{number}.txt", f"option {number} {'x' * number}")
    arguments = [str(line.documents), str(stage_embedders[0]), str(line.home)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not list((line.home / "artifacts" / "index").glob("[!.]*"))
    index = line.build()
    assert index.counts["chunks_reused"] == 20
    assert index.counts["chunks_embedded"] == index.counts["chunks"] - 20 > 20
    assert index.digest == line.build(tmp_path / "fresh").digest
    assert not list((line.home / "artifacts" / "index").glob(".*"))
