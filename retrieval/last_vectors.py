"""The vectors of an index that was written before, found by what was embedded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from retrieval.chunk_table import ChunkTable
from retrieval.chunking import Chunk
from retrieval.index import CHUNKS, VECTORS
from retrieval.vectors import BLOCK, open_index

_EXACT = re.compile(r"Flat|IVF\d+(_\w+)?,Flat|HNSW\d+(,Flat)?")


def keeps_exactly(factory: str) -> bool:
    """Whether an index of this type, by faiss's name, keeps vectors to the last bit.

    >>> keeps_exactly("IVF2048,Flat"), keeps_exactly("IVF2048,SQ8")
    (True, False)
    """
    return _EXACT.fullmatch(factory) is not None


def kept_vectors(
    folder: Path, wanted: Iterable[tuple[Chunk, bytes]]
) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """Vectors of chunks that an index has too, as they were given to it.

    Args:
      folder: of the index, whose type keeps them so; its chunks were made with the settings of those wanted.
      wanted: chunks with the keys of their vectors.

    Yields:
      Keys, and their vectors, float32 [N, D]; each key once.
    """
    import faiss

    index = open_index(folder / VECTORS)
    if (lists := faiss.try_extract_index_ivf(index)) is not None:
        lists.make_direct_map()  # so that it can tell by row
    keys = {_text(chunk): key for chunk, key in wanted}
    rows: list[int] = []
    found: list[bytes] = []
    for row, chunk in enumerate(ChunkTable(folder / CHUNKS)):
        if (key := keys.pop(_text(chunk), None)) is not None:
            rows.append(row)
            found.append(key)
        if len(rows) >= BLOCK or (rows and not keys):
            yield found, index.reconstruct_batch(np.array(rows, np.int64))
            rows, found = [], []
        if not keys:
            return
    if rows:
        yield found, index.reconstruct_batch(np.array(rows, np.int64))


def _text(chunk: Chunk) -> bytes:
    """What is embedded of a chunk is made of these two."""
    return hashlib.sha256(f"{chunk.heading}\0{chunk.text}".encode("utf-8", "surrogatepass")).digest()
