import json

import pyarrow.parquet as pq
import pytest

from jora_tasks.digests import digest_folder
from jora_tasks.errors import InputError
from jora_tasks.stages.index import build_index
from retrieval.index import Index


def test_files_and_schema(rag):
    index = rag.index()
    assert sorted(path.name for path in index.path.iterdir()) == [
        "chunks.parquet",
        "embedder.json",
        "index.faiss",
        "lexical",
        "manifest.json",
    ]
    schema = pq.read_schema(index.file("chunks.parquet"))
    assert {field.name: str(field.type) for field in schema} == {
        "chunk_id": "string",
        "document_id": "string",
        "start": "int64",
        "end": "int64",
        "heading": "string",
        "text": "string",
        "n_tokens": "int32",
        "metadata": "map<string, string ('metadata')>",
    }
    opened = Index(index.path)
    assert index.counts["chunks"] == len(opened.chunks) == opened._index.ntotal
    identity = json.loads(index.file("embedder.json").read_text())
    assert identity["max_seq_length"] == 64
    assert identity["normalised"] is True
    assert str(rag.folder) not in (index.path / "manifest.json").read_text()


def test_each_vector_is_that_of_its_heading_and_text(rag):
    import numpy as np

    from jora_tasks.stages.embed import open_embedder

    opened = Index(rag.index().path)
    texts = [f"{chunk.heading}\n{chunk.text}" for chunk in opened.chunks]
    expected = open_embedder(rag.spec(), rag.store)[0].embed_texts(texts)
    stored = opened._index.reconstruct_n(0, len(texts))
    np.testing.assert_allclose(stored, expected, atol=1e-5)


def test_reused_unless_corpus_embedder_or_chunking_changes(rag, other_embedder_folder):
    first = rag.index()
    assert rag.index().reused
    assert rag.index(index={"batch_tokens": 1, "shards": 3}).key == first.key
    keys = {first.key}
    keys.add(rag.index(index={"chunk_tokens": 30}).key)
    keys.add(rag.index(index={"chunk_overlap": 2}).key)
    keys.add(rag.index(index={"embedder": str(other_embedder_folder)}).key)
    (rag.folder / "documents" / "new.md").write_text("# New\n\ntext")
    keys.add(rag.index().key)
    assert len(keys) == 5


def test_a_reused_index_counts_what_changed_now(rag):
    first = rag.index()
    rag.store.set_latest("documents", first)
    assert (first.counts["added"], first.counts["chunks_reused"]) == (1, 0)
    again = rag.index()
    told = ("added", "updated", "removed", "unchanged", "chunks_embedded", "chunks_reused")
    assert [again.counts[name] for name in told] == [0, 0, 0, 1, 0, first.counts["chunks"]]
    assert rag.store.get("index", first.key).counts == first.counts


def test_two_builds_have_equal_bytes(rag, tmp_path):
    from jora_tasks.artifacts import ArtifactStore

    first = rag.index()
    rag.store = ArtifactStore(tmp_path / "second")
    second = rag.index()
    assert not second.reused
    assert second.digest == first.digest
    assert digest_folder(second.path) != ""


def test_chunks_longer_than_the_embedder_reads_are_refused(rag):
    with pytest.raises(
        InputError, match=r"index\.chunk_tokens is 63, .* reads only 62 tokens .* to at most 62"
    ):
        build_index(rag.spec(index={"chunk_tokens": 63}), rag.corpus(), rag.store, rag.progress)
    assert rag.left("index") == []
