"""The costly part of an index ahead of it: vectors of a part of the corpus, into the cache.

An index that is built afterwards finds them there. Parts may be embedded at the same time, by
several processes that share the home.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from jora_tasks.artifacts import Artifact, ArtifactStore, Source, digest_json
from jora_tasks.errors import InputError
from jora_tasks.models import embedder_folder, model_source
from jora_tasks.progress import Progress
from jora_tasks.spec import RunSpec
from jora_tasks.stages.corpus import read_documents

if TYPE_CHECKING:
    from retrieval.cache import Cache
    from retrieval.chunking import Chunk
    from retrieval.documents import Document
    from retrieval.embedding import Embedder
    from retrieval.indexing import Indexer

CACHE_VERSION = 1  # raised when the same text would get another vector


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
    shards = spec.index.shards
    if not 0 <= shard < shards:
        raise InputError(f"shard {shard} is none of index.shards {shards}; give one from 0 to {shards - 1}.")
    embedder, _ = open_embedder(spec, store)

    def part() -> Iterator[Document]:
        return (each for each in read_documents(corpus) if shard_of(each.id, shards) == shard)

    with open_indexer(spec, embedder, store) as (indexer, cache):
        keys, documents = [], 0
        for _, made in indexer.chunks(part()):
            keys += [key for _, key in made]
            documents += 1
            progress("embed", done=documents, unit="documents chunked")
        again = (pair for _, made in indexer.chunks(part()) for pair in made)
        embedded = embed_missing(indexer, cache, keys, again, progress, "embed")
    return {
        "documents": documents,
        "chunks": len(keys),
        "chunks_embedded": embedded,
        "chunks_reused": len(keys) - embedded,
    }


def shard_of(document_id: str, shards: int) -> int:
    """Which part a document is in, whatever the others are."""
    return int.from_bytes(hashlib.sha256(document_id.encode()).digest()[:8]) % shards


def embed_missing(
    indexer: Indexer,
    cache: Cache,
    keys: Sequence[bytes],
    chunks: Iterable[tuple[Chunk, bytes]],
    progress: Progress,
    stage: str,
) -> int:
    """Embed the texts of these keys that the cache lacks; returns how many there were.

    Args:
      keys: of the chunks.
      chunks: the same with their keys, looked at only if there is anything to embed.
    """
    wanted = set(keys)
    missing = wanted - cache.known(wanted)
    total = len(missing)
    if missing:
        indexer.embed(
            chunks, missing, lambda done: progress(stage, done=done, total=total, unit="chunks embedded")
        )
    return total


@contextlib.contextmanager
def open_indexer(spec: RunSpec, embedder: Embedder, store: ArtifactStore) -> Iterator[tuple[Indexer, Cache]]:
    """What cuts and embeds documents with the spec's settings, and its cache, open while it is used."""
    from retrieval.cache import Cache
    from retrieval.indexing import Cutting, Indexer

    identity = [CACHE_VERSION, embedder.digest, embedder.backend, *embedder.prompts]
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
