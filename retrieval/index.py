"""A folder with chunks, their vectors in faiss, and the embedder that made them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jora_tasks.errors import InputError
from retrieval.chunking import Chunk
from retrieval.embedding import EmbedderIdentity, check_vectors

CHUNKS, VECTORS, EMBEDDER = "chunks.parquet", "index.faiss", "embedder.json"


def write_index(
    folder: Path, chunks: Sequence[Chunk], vectors: np.ndarray, identity: EmbedderIdentity
) -> None:
    """Write the index: row i of ``vectors`` (float32 [N, D], normalised) belongs to chunk i."""
    import faiss
    import pyarrow as pa
    import pyarrow.parquet as pq

    if vectors.shape != (len(chunks), identity.dimension):
        raise ValueError(f"vectors of shape {vectors.shape} for {len(chunks)} chunks of {identity.dimension}")
    check_vectors(vectors, identity.name)
    pq.write_table(
        pa.Table.from_pylist([_row(chunk) for chunk in chunks], schema=chunk_schema()), folder / CHUNKS
    )
    index = faiss.IndexFlatIP(identity.dimension)  # exact search
    index.add(np.ascontiguousarray(vectors, dtype=np.float32))
    faiss.write_index(index, str(folder / VECTORS))
    (folder / EMBEDDER).write_text(json.dumps(identity.record(), indent=2) + "\n")


def chunk_schema() -> Any:
    """Columns of ``chunks.parquet``."""
    import pyarrow as pa

    return pa.schema(
        [
            ("chunk_id", pa.string()),
            ("document_id", pa.string()),
            ("start", pa.int64()),
            ("end", pa.int64()),
            ("heading", pa.string()),
            ("text", pa.string()),
            ("n_tokens", pa.int32()),
        ]
    )


def read_chunks(folder: Path) -> list[Chunk]:
    """The chunks of an index, in the order of its vectors."""
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / CHUNKS).to_pylist()
    return [Chunk(id=row.pop("chunk_id"), **row) for row in rows]


def check_embedder(folder: Path, name: str, digest: str) -> None:
    """Refuse an embedder other than the one that built the index, without opening either.

    Raises:
      InputError: naming both; vectors of different models cannot be compared.
    """
    identity = _identity(folder)
    if identity.digest != digest:
        raise InputError(
            f"The index was built by the embedder {identity.name} ({identity.digest[:19]}), but "
            f"index.embedder is {name} ({digest[:19]}); build the index again with `jora index`, or name "
            "the first one."
        )


class Index:
    """An index that has been written, opened for search."""

    def __init__(self, folder: Path) -> None:
        import faiss

        self.chunks = read_chunks(folder)
        self.identity = _identity(folder)
        self._index = faiss.read_index(str(folder / VECTORS))
        if self._index.ntotal != len(self.chunks):
            raise InputError(
                f"The index in {folder} has {self._index.ntotal} vectors for {len(self.chunks)} chunks; "
                "build it again with `jora index`."
            )

    def search(
        self, vectors: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> list[list[tuple[int, float]]]:
        """The rows of the k best chunks with their cosines, best first, for each vector.

        Args:
          vectors: float32 [N, D], normalised.
          k: how many; all there are where they are fewer.
          allowed: bool [chunks], which may be found; all by default.
        """
        import faiss

        parameters = None
        if allowed is not None:
            chosen = faiss.IDSelectorBatch(np.flatnonzero(allowed))
            parameters = faiss.SearchParameters(sel=chosen)  # type: ignore[call-arg]
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        scores, rows = self._index.search(queries, min(k, len(self.chunks)), params=parameters)
        return [
            [
                (int(row), float(score))
                for row, score in zip(each_rows, each_scores, strict=True)
                if row >= 0  # faiss fills up with -1
            ]
            for each_rows, each_scores in zip(rows, scores, strict=True)
        ]


def _row(chunk: Chunk) -> dict[str, Any]:
    row = asdict(chunk)
    return {"chunk_id": row.pop("id"), **row}


def _identity(folder: Path) -> EmbedderIdentity:
    return EmbedderIdentity(**json.loads((folder / EMBEDDER).read_text()))
