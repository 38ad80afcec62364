"""Corpus → index: chunks, their vectors and the embedder that made them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.progress import Progress
from jora_tasks.spec import RunSpec
from jora_tasks.stages.corpus import changes, document_digests, read_documents
from jora_tasks.stages.embed import embed_missing, missing_vectors, open_embedder, open_indexer
from jora_tasks.stages.embedded import MADE_WITH, VECTORS_VERSION, note_taken, parts, take_parts

if TYPE_CHECKING:
    from retrieval.chunking import Chunk

VERSION = 5


def build_index(spec: RunSpec, corpus: Artifact, store: ArtifactStore, progress: Progress) -> Artifact:
    """Chunk and embed the corpus; what was embedded before, here or on other machines, is taken.

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
    made_of: dict[str, Any] = {
        "version": VERSION,
        "settings": settings.making(),
        "inputs": {"corpus": corpus, "embedder": source},
    }

    def write(target: Path) -> Mapping[str, Any]:
        from retrieval.chunk_table import ChunkTable, write_chunks
        from retrieval.index import CHUNKS, write_vectors
        from retrieval.indexing import CachedRows
        from retrieval.lexical import write_lexical
        from retrieval.search import shown_text
        from retrieval.vectors import empty_index, factory_string

        with open_indexer(spec, embedder, store) as (indexer, cache):
            if store.shared is not None and settings.shards > 1:
                take_parts(cache, store, parts(spec, corpus, source))
            dimension = indexer.identity.dimension
            empty_index(factory_string(settings.type, 0), dimension)  # refused before anything is embedded
            documents = corpus.counts["documents"]
            keys: list[bytes] = []

            def listed() -> Iterator[Chunk]:
                for done, (_, made) in enumerate(indexer.chunks(read_documents(corpus)), start=1):
                    keys.extend(key for _, key in made)
                    yield from (chunk for chunk, _ in made)
                    progress("index", done=done, total=documents, unit="documents chunked")

            write_chunks(target / CHUNKS, listed())
            chunks = ChunkTable(target / CHUNKS)

            def keyed() -> Iterator[tuple[Chunk, bytes]]:
                return zip(chunks, keys, strict=True)

            missing = missing_vectors(spec, source, store, cache, keys, keyed)
            embedded = embed_missing(indexer, missing, keyed, progress, "index")
            built = write_vectors(
                target,
                CachedRows(cache, keys, dimension),
                indexer.identity,
                settings.type,
                settings.recall_target,
                lambda done: progress("index", done=done, total=len(keys), unit="chunks indexed"),
            )
            write_lexical(target, map(shown_text, chunks))
            cosine = indexer.cosine_to_float32
            note_taken(cache, "index", store.key("index", **made_of))
        return {
            "documents": documents,
            **changes(document_digests(corpus), _indexed_before(spec, store)),
            "chunks": len(keys),
            "tokens": sum(chunks.columns("n_tokens")["n_tokens"]),
            "dimension": dimension,
            "chunks_embedded": embedded,
            "chunks_reused": len(keys) - embedded,
            **built.told(),
            **({"cosine_to_float32": cosine} if cosine else {}),
        }

    index = store.build("index", **made_of, write=write, provenance={MADE_WITH: VECTORS_VERSION})
    if not index.reused:
        return index
    now = changes(document_digests(corpus), _indexed_before(spec, store))
    return index.recounted({**now, "chunks_embedded": 0, "chunks_reused": index.counts["chunks"]})


def _indexed_before(spec: RunSpec, store: ArtifactStore) -> dict[str, str]:
    """Document id → digest in the last index of this name; empty if that is gone."""
    try:
        last = store.latest(spec.name, "index")
        return document_digests(store.get("corpus", last.manifest["inputs"]["corpus"]["key"]))
    except InputError:
        return {}
