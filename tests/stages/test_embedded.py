"""Vectors that one machine made, on another: none is made anew, and the index is that of a fresh start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.manifest import MANIFEST
from jora_tasks.progress import Progress
from jora_tasks.shared_store import ARTIFACTS
from jora_tasks.stages import embed
from jora_tasks.stages import embedded as embedded_module
from jora_tasks.stages.corpus import build_corpus
from jora_tasks.stages.embed import embed_shard
from jora_tasks.stages.embedded import KIND
from retrieval.embedding import Embedder
from tests.stages.test_incremental_index import Line

SHARDS = 3
DOCUMENTS = 12


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the real model embeds."""
    texts: list[str] = []
    batches = Embedder.embed_batches

    def embedding(self: Any, given: Any) -> Any:
        texts.extend(given)
        return batches(self, given)

    monkeypatch.setattr(Embedder, "embed_batches", embedding)
    return texts


class Machines:
    """Homes that share artifacts, over one folder of documents."""

    def __init__(self, folder: Path, embedder: Path) -> None:
        self.folder, self.line = folder, Line(folder, embedder)
        for number in range(DOCUMENTS):
            self.line.write(f"{number}.md", f"# Part {number}\n\noption {number}")

    def part(self, machine: str, shard: int, **index: Any) -> dict[str, int]:
        store, spec = ArtifactStore(self.folder / machine), self.line.spec(shards=SHARDS, **index)
        return embed_shard(spec, build_corpus(spec, store, Progress()), store, Progress(), shard)

    def build(self, machine: str, shards: int = SHARDS, **index: Any) -> Any:
        return self.line.build(self.folder / machine, shards=shards, **index)

    def alone(self, name: str, **index: Any) -> Any:
        """The index of a home that shares nothing."""
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv(ARTIFACTS)
            return self.line.build(self.folder / f"alone {name}", **index)


def damage(machines: Machines, kind: str) -> None:
    """Leave the beginning of the one manifest of a kind that is shared."""
    shared = ArtifactStore(machines.folder / "one").shared
    [key] = shared.keys(kind)
    shared.write(b"{", "artifacts", kind, key, MANIFEST)


@pytest.fixture
def machines(stage_embedders: Any, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    monkeypatch.setenv(ARTIFACTS, s3)
    return Machines(tmp_path, stage_embedders[0])


@pytest.mark.parametrize("backend", ["torch", "onnx_int8"])
def test_an_index_takes_the_parts_that_other_machines_embedded(
    machines: Machines, embedded: list[str], backend: str
) -> None:
    parts = [machines.part(f"worker {shard}", shard, backend=backend) for shard in range(SHARDS)]
    assert sum(each["chunks_embedded"] for each in parts) == len(embedded) == DOCUMENTS + 1
    embedded.clear()
    index = machines.build("another", backend=backend)
    assert embedded == []
    assert (index.counts["chunks_embedded"], index.counts["chunks_reused"]) == (0, DOCUMENTS + 1)
    alone = machines.alone("index", backend=backend)
    assert (index.key, index.digest) == (alone.key, alone.digest)
    assert ("cosine_to_float32" in index.counts) == (backend == "onnx_int8")


def test_a_part_that_is_there_is_made_by_no_machine_again(machines: Machines, embedded: list[str]) -> None:
    first = machines.part("one", 0)
    embedded.clear()
    again = machines.part("two", 0)
    assert embedded == [] and again == {**first, "chunks_embedded": 0, "chunks_reused": first["chunks"]}
    assert not (machines.folder / "two" / "artifacts" / KIND).exists()  # the index fetches it, if it has to


def test_parts_whose_documents_stay_are_found_however_the_others_change(
    machines: Machines, embedded: list[str]
) -> None:
    for shard in range(SHARDS):
        machines.part("one", shard)
    machines.build("one")
    machines.line.write("3.md", "# Part 3\n\nanother option")
    embedded.clear()
    parts = [machines.part("two", shard) for shard in range(SHARDS)]
    assert len(embedded) == 1 == sum(each["chunks_embedded"] for each in parts)
    embedded.clear()
    index = machines.build("three")
    assert embedded == [] and index.digest == machines.alone("index").digest


@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "HNSW8"])
def test_what_the_last_index_has_another_machine_does_not_embed(
    machines: Machines, embedded: list[str], kind: str
) -> None:
    made = {"type": kind, "recall_target": 0.5}
    machines.build("one", shards=1, **made)
    machines.line.write("3.md", "# Part 3\n\nanother option")
    (machines.line.documents / "4.md").rename(machines.line.documents / "moved.md")
    (machines.line.documents / "5.md").unlink()
    embedded.clear()
    index = machines.build("two", shards=1, **made)
    assert embedded == ["Part 3\nanother option"] or len(embedded) == 1
    assert index.counts["chunks_embedded"] == 1
    assert index.digest == machines.alone("index", **made).digest


def test_the_last_index_is_looked_into_once(
    machines: Machines, embedded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import retrieval.last_vectors

    looks, look = [], retrieval.last_vectors.kept_vectors
    monkeypatch.setattr(
        retrieval.last_vectors, "kept_vectors", lambda *given: looks.append(given) or look(*given)
    )
    machines.build("one")
    machines.line.write("3.md", "# Part 3\n\nanother option")
    machines.build("one")
    assert looks == []  # it made that itself
    machines.line.write("3.md", "# Part 3\n\na third option")
    machines.build("two")
    assert len(looks) == 1
    machines.line.write("3.md", "# Part 3\n\na fourth option")
    machines.build("two")
    assert len(looks) == 1


def test_every_part_takes_from_the_last_index_what_that_has(machines: Machines, embedded: list[str]) -> None:
    machines.build("one", shards=1)
    machines.line.write("new.md", "# New\n\nanother option")
    embedded.clear()
    parts = [machines.part("two", shard) for shard in range(SHARDS)]
    assert len(embedded) == 1 == sum(each["chunks_embedded"] for each in parts)


def test_a_damaged_manifest_of_a_part_is_made_anew(machines: Machines, embedded: list[str]) -> None:
    first = machines.part("one", 0)
    damage(machines, KIND)
    embedded.clear()
    assert machines.part("two", 0) == first and len(embedded) == first["chunks"]
    embedded.clear()
    assert machines.part("three", 0)["chunks_embedded"] == len(embedded) == 0


def test_a_damaged_manifest_of_the_last_index_is_as_none(machines: Machines, embedded: list[str]) -> None:
    machines.build("one")
    damage(machines, "index")
    machines.line.write("3.md", "# Part 3\n\nanother option")
    embedded.clear()
    index = machines.build("two")
    assert index.counts["chunks_embedded"] == len(embedded) == DOCUMENTS + 1
    assert index.digest == machines.alone("index").digest


def test_vectors_of_another_version_are_parts_of_their_own(
    machines: Machines, embedded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machines.part("one", 0)
    for module in (embed, embedded_module):
        monkeypatch.setattr(module, "VECTORS_VERSION", embed.VECTORS_VERSION + 1)
    embedded.clear()
    assert machines.part("two", 0) == first and len(embedded) == first["chunks"] > 0


@pytest.mark.parametrize(
    "change",
    [{"chunk_tokens": 30}, {"passage_prompt": "passage: "}, {"backend": "onnx_int8"}, {"type": "ivf_sq8"}],
)
def test_vectors_that_are_not_those_asked_for_are_not_taken(
    machines: Machines, embedded: list[str], change: dict[str, Any]
) -> None:
    before = change if "type" in change else {}  # 8 bits are not what was embedded
    machines.build("one", recall_target=0.5, **before)
    embedded.clear()
    machines.line.write("3.md", "# Part 3\n\nanother option")
    index = machines.build("two", recall_target=0.5, **change)
    assert len(embedded) >= index.counts["chunks_embedded"] == index.counts["chunks"]
    assert index.digest == machines.alone("index", recall_target=0.5, **change).digest


def test_a_damaged_or_missing_part_is_made_with_the_index(machines: Machines, embedded: list[str]) -> None:
    import fsspec

    for shard in (0, 1):
        machines.part("one", shard)
    system, root = fsspec.url_to_fs(ArtifactStore(machines.folder / "one").shared.url)
    damaged = next(path for path in system.find(f"{root}/artifacts/{KIND}") if path.endswith(".parquet"))
    system.pipe_file(damaged, system.cat_file(damaged)[:-20])
    embedded.clear()
    index = machines.build("two")
    assert 0 < index.counts["chunks_embedded"] == len(embedded) < DOCUMENTS + 1
    assert index.digest == machines.alone("index").digest


def test_where_nothing_is_shared_the_cache_is_enough(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ARTIFACTS)
    machines.part("one", 0)
    assert not (machines.folder / "one" / "artifacts" / KIND).exists()
