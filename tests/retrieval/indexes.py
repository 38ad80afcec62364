"""Indexes of chunks whose vectors are at hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from retrieval.chunk_table import write_chunks
from retrieval.chunking import Chunk
from retrieval.embedding import EmbedderIdentity
from retrieval.index import CHUNKS, write_vectors
from retrieval.vectors import Rows


def write_index(folder: Path, chunks: Iterable[Chunk], rows: Rows, identity: EmbedderIdentity) -> None:
    """Write an exact index, without words: row i of the vectors belongs to chunk i."""
    write_vectors(folder, rows, identity)
    write_chunks(folder / CHUNKS, chunks)
