"""Vectors that were made before, on whichever machine: those of parts of a corpus, and of the last index.

A part is an artifact of its own where machines share artifacts. It is known by its documents, whatever the
others are: while they stay as they are, it is there already. What is taken goes into the home's cache, once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jora_tasks.artifacts import Artifact, ArtifactStore, Input, Source
from jora_tasks.digests import digest_bytes, digest_json
from jora_tasks.errors import InputError
from jora_tasks.spec import RunSpec
from jora_tasks.stages.corpus import document_digests

if TYPE_CHECKING:
    from retrieval.cache import Cache
    from retrieval.chunking import Chunk

VERSION = 1
KIND, FILE = "embedded", "texts.parquet"

VECTORS_VERSION = 1
"""Raised when the same text would get another vector."""

MADE_WITH = "vectors_version"
"""Where the manifest of an index, and of a part, says with which `VECTORS_VERSION` it was made."""


@dataclass(frozen=True)
class Part:
    """One of ``index.shards`` parts of a corpus."""

    settings: Mapping[str, Any]
    inputs: Mapping[str, Input]

    def key(self, store: ArtifactStore) -> str:
        return store.key(KIND, version=VERSION, settings=self.settings, inputs=self.inputs)


def shard_of(document_id: str, shards: int) -> int:
    """Which part a document is in, whatever the others are."""
    return int(digest_bytes(document_id.encode()).removeprefix("sha256:")[:16], 16) % shards


def parts(spec: RunSpec, corpus: Artifact, embedder: Source) -> list[Part]:
    """The parts of a corpus, by number."""
    shards = spec.index.shards
    digests: list[list[str]] = [[] for _ in range(shards)]
    for document_id, digest in document_digests(corpus).items():
        digests[shard_of(document_id, shards)].append(digest)
    names = (f"part {shard} of {shards}" for shard in range(shards))
    return [
        Part(
            {**_deciding(spec), MADE_WITH: VECTORS_VERSION},
            {"documents": Source("documents", name, digest_json(sorted(each))), "embedder": embedder},
        )
        for name, each in zip(names, digests, strict=True)
    ]


def take_parts(cache: Cache, store: ArtifactStore, wanted: Iterable[Part]) -> None:
    """Bring to the cache what the parts have that are there and whole."""
    for part in wanted:
        key = part.key(store)
        if cache.fact(_taken(KIND, key)) is not None:
            continue
        try:
            found = store.find(KIND, key)
        except InputError:
            continue  # damaged: made with the rest
        if found is not None:
            cache.read(found.file(FILE))
            note_taken(cache, KIND, key)


def take_from_last_index(
    cache: Cache,
    store: ArtifactStore,
    spec: RunSpec,
    embedder: Source,
    chunks: Callable[[], Iterable[tuple[Chunk, bytes]]],
    missing: set[bytes],
) -> None:
    """Bring to the cache those of the missing vectors that the last index of this name has.

    It has more than these, so whoever lacks others looks again.

    Args:
      chunks: that are wanted, with the keys of their vectors.
      missing: keys; those that were found are taken out.
    """
    from retrieval.last_vectors import keeps_exactly, kept_vectors

    key = store.latest_key(spec.name, "index")
    manifest = store.manifest("index", key) if key else None
    if key is None or manifest is None or cache.fact(_taken("index", key)) is not None:
        return
    alike = (
        manifest["provenance"].get(MADE_WITH) == VECTORS_VERSION
        and manifest["inputs"]["embedder"]["digest"] == embedder.digest
        and _deciding(spec).items() <= manifest["settings"].items()
    )
    if not alike or not keeps_exactly(manifest["counts"].get("type", "")):
        return
    try:
        index = store.get("index", key)
    except InputError:
        return  # damaged, or removed since
    for keys, vectors in kept_vectors(index.path, ((c, k) for c, k in chunks() if k in missing)):
        cache.add_vectors(keys, vectors)
        missing.difference_update(keys)
    if cosine := index.counts.get("cosine_to_float32"):
        cache.add_fact("cosine", json.dumps(cosine))


def note_taken(cache: Cache, kind: str, key: str) -> None:
    """Note that the cache has all that an artifact has."""
    cache.add_fact(_taken(kind, key), "")


def _taken(kind: str, key: str) -> str:
    return f"{kind} {key}"


def _deciding(spec: RunSpec) -> dict[str, Any]:
    """The settings that decide how documents are cut and what vectors they get."""
    of_faiss = ("type", "recall_target")
    return {name: value for name, value in spec.index.making().items() if name not in of_faiss}
