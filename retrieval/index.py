"""A folder with chunks, their vectors in faiss, and the embedder that made them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jora_tasks.errors import InputError
from retrieval.chunk_table import ChunkTable
from retrieval.chunking import Chunk
from retrieval.embedding import EmbedderIdentity
from retrieval.vectors import FLAT, Built, Rows, build, open_index, search

if TYPE_CHECKING:
    from retrieval.embedding import Embedder

CHUNKS, VECTORS, EMBEDDER = "chunks.parquet", "index.faiss", "embedder.json"


def write_vectors(
    folder: Path,
    rows: Rows,
    identity: EmbedderIdentity,
    kind: str = FLAT,
    recall_target: float = 0.98,
    done: Callable[[int], None] | None = None,
) -> Built:
    """Write the vectors of an index's chunks in their order. See `retrieval.vectors.build`."""
    import faiss

    built = build(rows, identity.dimension, kind, recall_target, name=identity.name, done=done)
    faiss.write_index(built.index, str(folder / VECTORS))
    (folder / EMBEDDER).write_text(json.dumps(identity.record(), indent=2) + "\n")
    return built


def read_chunks(folder: Path) -> list[Chunk]:
    """All chunks of an index in memory, in the order of its vectors."""
    return list(ChunkTable(folder / CHUNKS))


def check_embedder(folder: Path, embedder: Embedder) -> None:
    """Refuse an embedder other than the one that built the index, before it is opened.

    Raises:
      InputError: naming both; vectors of different models, prompts or backends cannot be compared.
    """
    built = _identity(folder)
    if built.digest != embedder.digest:
        raise InputError(
            f"The index was built by the embedder {built.name} ({built.digest[:19]}), but "
            f"index.embedder is {embedder.name} ({embedder.digest[:19]}); build the index again with "
            "`jora index`, or name the first one."
        )
    if built.backend != embedder.backend:
        raise InputError(
            f"The index was built with index.backend {built.backend}, but it is {embedder.backend} now; "
            "build the index again with `jora index`, or set the first one."
        )
    for name, was, now in zip(
        ("query_prompt", "passage_prompt"),
        (built.query_prompt, built.passage_prompt),
        embedder.prompts,
        strict=True,
    ):
        if now and was != now:
            raise InputError(
                f"The index was built with index.{name} {was!r}, but it is {now!r} now; build the index "
                "again with `jora index`, or set the first one."
            )


def check_identity(folder: Path, identity: EmbedderIdentity) -> None:
    """Refuse an embedder that does not embed as the one that built the index did, whatever its name.

    Raises:
      InputError: naming what differs: dimension, pooling, prompt or longest text.
    """
    built = _identity(folder).record() | {"name": identity.name}
    for field, now in identity.record().items():
        if built[field] != now:
            raise InputError(
                f"The index was built by an embedder with {field} {built[field]!r}, but that of "
                f"{identity.name} is {now!r}; build the index again with `jora index`."
            )


class Index:
    """An index that has been written, opened for search; its chunks are read as they are needed."""

    def __init__(self, folder: Path) -> None:
        self.chunks = ChunkTable(folder / CHUNKS)
        self.identity = _identity(folder)
        self._index = open_index(folder / VECTORS)
        if self._index.ntotal != len(self.chunks):
            raise InputError(
                f"The index in {folder} has {self._index.ntotal} vectors for {len(self.chunks)} chunks; "
                "build it again with `jora index`."
            )

    def search(
        self, vectors: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> list[list[tuple[int, float]]]:
        """The rows of the k best chunks with their cosines, best first, equal ones by row, for each vector.

        Args:
          vectors: float32 [N, D], normalised.
          k: how many; all there are where they are fewer.
          allowed: bool [chunks], which may be found; all by default.
        """
        among = None if allowed is None else np.flatnonzero(allowed)
        scores, rows = search(self._index, vectors, min(k, len(self.chunks)), among)
        order = np.lexsort((rows, -scores), axis=1)
        return [
            # faiss fills up with -1
            [(row, score) for row, score in zip(each_rows, each_scores, strict=True) if row >= 0]
            for each_rows, each_scores in zip(
                np.take_along_axis(rows, order, axis=1).tolist(),
                np.take_along_axis(scores, order, axis=1).tolist(),
                strict=True,
            )
        ]


def _identity(folder: Path) -> EmbedderIdentity:
    return EmbedderIdentity(**json.loads((folder / EMBEDDER).read_text()))
