"""The costly part of an index ahead of it: vectors of a part of the corpus.

An index that is built afterwards finds them in the home's cache, or takes the artifact of the part where
machines share artifacts. Parts may be embedded at the same time, by several processes or machines.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jora_tasks.artifacts import Artifact, ArtifactStore, Source
from jora_tasks.digests import digest_json
from jora_tasks.manifest import MANIFEST
from jora_tasks.models import embedder_folder, model_source
from jora_tasks.progress import Progress
from jora_tasks.spec import RunSpec
from jora_tasks.stages.corpus import read_documents
from jora_tasks.stages.embedded import (
    FILE,
    KIND,
    VECTORS_VERSION,
    VERSION,
    note_taken,
    parts,
    shard_of,
    take_from_last_index,
)
from jora_tasks.stages.parts import check_shard

if TYPE_CHECKING:
    from retrieval.cache import Cache
    from retrieval.chunking import Chunk
    from retrieval.documents import Document
    from retrieval.embedding import Embedder
    from retrieval.indexing import Indexer


def embed_shard(
    spec: RunSpec, corpus: Artifact, store: ArtifactStore, progress: Progress, shard: int
) -> dict[str, int]:
    """Embed the documents of one of ``index.shards`` parts.

    Args:
      shard: number of the part, from 0.

    Returns:
      Counts: documents and chunks of the part, and how many chunks were embedded and reused.

    Raises:
      InputError: as `jora_tasks.stages.index.build_index`; or if there is no such part.
    """
    check_shard("index", shard, spec.index.shards)
    if store.shared is None:
        return _embed(spec, corpus, store, progress, shard)
    _, source = open_embedder(spec, store)
    part = parts(spec, corpus, source)[shard]
    key = part.key(store)
    published = store.shared.manifest(KIND, key)
    made = store.manifest(KIND, key) if published is not None else None
    if made is not None:
        store.shared.mark_used(KIND, key)  # fetched only by the index, if that lacks it
    else:
        if published is not None:  # damaged: nothing could be published in its place
            store.shared.remove("artifacts", KIND, key, MANIFEST)
        write = partial(_embed, spec, corpus, store, progress, shard)
        built = store.build(KIND, version=VERSION, settings=part.settings, inputs=part.inputs, write=write)
        if not built.reused:
            return dict(built.counts)
        made = built.manifest
    chunks = made["counts"]["chunks"]
    return {**made["counts"], "chunks_embedded": 0, "chunks_reused": chunks}


def _embed(
    spec: RunSpec,
    corpus: Artifact,
    store: ArtifactStore,
    progress: Progress,
    shard: int,
    folder: Path | None = None,
) -> dict[str, int]:
    """Embed a part into the home's cache, and write what that has of it to a folder, if one is given."""
    from retrieval.indexing import FACTS

    embedder, source = open_embedder(spec, store)

    def part() -> Iterator[Document]:
        documents = read_documents(corpus)
        return (each for each in documents if shard_of(each.id, spec.index.shards) == shard)

    with open_indexer(spec, embedder, store) as (indexer, cache):
        keys, cuts, documents = [], [], 0
        for document, made in indexer.chunks(part()):
            cuts.append(indexer.cut_key(document))
            keys += [key for _, key in made]
            documents += 1
            progress("embed", done=documents, unit="documents chunked")

        def chunks() -> Iterator[tuple[Chunk, bytes]]:
            return (pair for _, made in indexer.chunks(part()) for pair in made)

        missing = missing_vectors(spec, source, store, cache, keys, chunks)
        embedded = embed_missing(indexer, missing, chunks, progress, "embed")
        if folder is not None:
            cache.write(folder / FILE, cuts, keys, FACTS)
            note_taken(cache, KIND, parts(spec, corpus, source)[shard].key(store))
    return {
        "documents": documents,
        "chunks": len(keys),
        "chunks_embedded": embedded,
        "chunks_reused": len(keys) - embedded,
    }


def missing_vectors(
    spec: RunSpec,
    embedder: Source,
    store: ArtifactStore,
    cache: Cache,
    keys: Sequence[bytes],
    chunks: Callable[[], Iterable[tuple[Chunk, bytes]]],
) -> set[bytes]:
    """The keys whose vectors neither the cache nor the last index has; others are brought to the cache.

    Args:
      keys: of the chunks.
      chunks: the same with their keys, looked at only if the cache lacks any.
    """
    wanted = set(keys)
    missing = wanted - cache.known(wanted)
    if missing:
        take_from_last_index(cache, store, spec, embedder, chunks, missing)
    return missing


def embed_missing(
    indexer: Indexer,
    missing: set[bytes],
    chunks: Callable[[], Iterable[tuple[Chunk, bytes]]],
    progress: Progress,
    stage: str,
) -> int:
    """Embed the texts of missing keys; returns how many there were.

    Args:
      missing: emptied.
      chunks: with their keys, looked at only if there is anything to embed.
    """
    total = len(missing)
    if missing:
        indexer.embed(
            chunks(), missing, lambda done: progress(stage, done=done, total=total, unit="chunks embedded")
        )
    return total


@contextlib.contextmanager
def open_indexer(spec: RunSpec, embedder: Embedder, store: ArtifactStore) -> Iterator[tuple[Indexer, Cache]]:
    """What cuts and embeds documents with the spec's settings, and its cache, open while it is used."""
    from retrieval.cache import Cache
    from retrieval.indexing import Cutting, Indexer

    identity = [VECTORS_VERSION, embedder.digest, embedder.backend, *embedder.prompts]
    name = digest_json(identity).removeprefix("sha256:")[:16]
    with Cache(store.home / "cache" / "vectors" / f"{name}.sqlite") as cache:
        yield Indexer(embedder, cache, Cutting(spec.index.chunk_tokens, spec.index.chunk_overlap)), cache


def open_embedder(spec: RunSpec, store: ArtifactStore) -> tuple[Embedder, Source]:
    """The embedder that the spec names, and what it is as an input; its files are read when it is used."""
    from retrieval.embedding import Embedder

    folder = embedder_folder(spec.index.embedder, store.home)
    source = model_source(folder, spec.index.embedder)
    embedder = Embedder(
        folder,
        source.name,
        source.digest,
        backend=spec.index.backend,
        query_prompt=spec.index.query_prompt,
        passage_prompt=spec.index.passage_prompt,
        batch_tokens=spec.index.batch_tokens,
        cache_folder=store.home / "cache" / "onnx",
    )
    return embedder, source
