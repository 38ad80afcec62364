"""Corpus → index: chunks, their vectors and the embedder that made them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.progress import Progress
from jora_tasks.spec import RunSpec
from jora_tasks.stages.corpus import changes, document_digests, read_documents
from jora_tasks.stages.embed import embed_missing, open_embedder, open_indexer

VERSION = 3


def build_index(spec: RunSpec, corpus: Artifact, store: ArtifactStore, progress: Progress) -> Artifact:
    """Chunk and embed the corpus; what was embedded before is taken from ``cache/vectors``.

    The artifact holds ``chunks.parquet``, ``index.faiss`` (row i is chunk i), ``embedder.json`` and
    ``lexical/``.
    faiss is given all vectors afresh, so that an index is the same whatever was indexed before it.
    Its counts tell what changed since the last index of this name, how many chunks were embedded and how
    many reused, and the recall of an index type that is not exact.

    Raises:
      InputError: if chunks of ``index.chunk_tokens`` do not fit the embedder, its vectors are not
        finite, or ``index.type`` is unfit or misses ``index.recall_target``.
    """
    embedder, source = open_embedder(spec, store)
    settings = spec.index

    def write(target: Path) -> Mapping[str, Any]:
        from retrieval.chunk_table import ChunkTable
        from retrieval.index import CHUNKS, write_index
        from retrieval.indexing import CachedRows
        from retrieval.lexical import write_lexical
        from retrieval.search import shown_text
        from retrieval.vectors import empty_index, factory_string

        with open_indexer(spec, embedder, store) as (indexer, cache):
            dimension = indexer.identity.dimension
            empty_index(factory_string(settings.type, 0), dimension)  # refused before anything is embedded
            total, documents, tokens = corpus.counts["documents"], 0, 0
            keys: list[bytes] = []
            for _, made in indexer.chunks(read_documents(corpus)):
                keys += [key for _, key in made]
                tokens += sum(chunk.n_tokens for chunk, _ in made)
                documents += 1
                progress("index", done=documents, total=total, unit="documents chunked")
            embedded = embed_missing(indexer, cache, keys, lambda: read_documents(corpus), progress, "index")

            built = write_index(
                target,
                (chunk for _, made in indexer.chunks(read_documents(corpus)) for chunk, _ in made),
                CachedRows(cache, keys, dimension),
                indexer.identity,
                settings.type,
                settings.recall_target,
                lambda done: progress("index", done=done, total=len(keys), unit="chunks indexed"),
            )
            write_lexical(target, map(shown_text, ChunkTable(target / CHUNKS)))
            cosine = indexer.cosine_to_float32
        return {
            "documents": documents,
            **changes(document_digests(corpus), _indexed_before(spec, store)),
            "chunks": len(keys),
            "tokens": tokens,
            "dimension": dimension,
            "chunks_embedded": embedded,
            "chunks_reused": len(keys) - embedded,
            **built.told(),
            **({"cosine_to_float32": cosine} if cosine else {}),
        }

    return store.build(
        "index",
        version=VERSION,
        settings=settings.making(),
        inputs={"corpus": corpus, "embedder": source},
        write=write,
    )


def _indexed_before(spec: RunSpec, store: ArtifactStore) -> dict[str, str]:
    """Document id → digest in the last index of this name; empty if that is gone."""
    try:
        last = store.latest(spec.name, "index")
        return document_digests(store.get("corpus", last.manifest["inputs"]["corpus"]["key"]))
    except InputError:
        return {}
