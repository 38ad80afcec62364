"""What an index of very many chunks would take, from rates of its real parts measured here.

Nothing of that size is built: each part works on a little, and its rate is multiplied. What is planned is how
`jora index` builds: documents are cut and embedded in shards, then one process lists the chunks, reads their
vectors from the cache, trains the index, adds all of them, tunes and writes it, and indexes the words.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jora_tasks.errors import InputError
from retrieval.cache import Cache, text_key
from retrieval.documents import Document
from retrieval.embedding import Embedder
from retrieval.indexing import CachedRows, Cutting, Indexer
from retrieval.lexical import write_lexical
from retrieval.tuning import ExactSearch, K
from retrieval.vectors import BLOCK, QUERIES, empty_index, factory_string, lists_of, trained_on

SEARCHED = 1 / 3
"""Part of the lists that tuning is taken to end at: it was 642 of 2,048 at 1,000,000 vectors in overlapping
clusters (``python -m tests.benchmarks.index_types``)."""

_KEY_BYTES = 33 + 32 + 8  # of a vector's key in a list of Python's
_SET_BYTES = 2 * 43  # of the same key in the two sets that tell what is missing
_CUT_CHUNKS, _EMBEDDED, _VECTORS = 500, 128, 16_384  # on which rates are measured
_PROBE_LISTS = 1024
_KNOWN = re.compile(r"Flat|IVF\d+,(Flat|SQ8)")


@dataclass(frozen=True)
class Rates:
    """What one process does a second on this machine.

    Attributes:
      cut: chunks cut from documents.
      embedded: chunks embedded.
      listed: chunks listed whose cuts are known.
      words: chunks whose words are indexed.
      read: vectors read from the cache.
      multiplied: products of two vectors, as training and adding compare each with every list's centre.
      compared: the same with each query's best kept, as exact search for the queries does.
      scanned: vectors of the index's type scanned in lists, times queries.
      written: bytes of an index.
      cached_bytes: of the cache file for each vector.
      words_bytes: of the index of words for each chunk.
    """

    cut: float
    embedded: float
    listed: float
    words: float
    read: float
    multiplied: float
    compared: float
    scanned: float
    written: float
    cached_bytes: float
    words_bytes: float


@dataclass(frozen=True)
class Step:
    """One step of a build.

    Attributes:
      tasks: that work at the same time, each in a process of its own.
      seconds: of each of them.
      memory: bytes that each holds beyond what it starts with.
      disk: bytes that the step leaves.
    """

    name: str
    tasks: int
    seconds: float
    memory: float
    disk: float


def measure_rates(documents: Sequence[Document], embedder: Embedder, cutting: Cutting, factory: str) -> Rates:
    """Measure all rates, in some tens of seconds.

    Args:
      documents: whose texts are cut and embedded.
      factory: the index's type, as `planned_type` gives it.
    """
    with tempfile.TemporaryDirectory() as folder:
        with Cache(Path(folder) / "cache.sqlite") as cache:
            indexer = Indexer(embedder, cache, cutting)
            dimension = indexer.identity.dimension
            cut, made = _timed(lambda: _first_chunks(indexer, documents))
            listed, _ = _timed(lambda: _first_chunks(indexer, documents))
            texts = [chunk.text for chunk, _ in made[:_EMBEDDED]]
            embedder.embed_texts(texts[:8])  # what the first takes longer is not of the rate
            embedded, _ = _timed(lambda: embedder.embed_texts(texts))
        vectors = _unit_vectors(_VECTORS, dimension)
        file = Path(folder) / "vectors.sqlite"
        with Cache(file) as cache:
            keys = [text_key(str(number)) for number in range(len(vectors))]
            cache.add_vectors(keys, vectors)
            read, _ = _timed(lambda: CachedRows(cache, keys, dimension).take(range(len(keys))))
        cached = sum(each.stat().st_size for each in Path(folder).glob("vectors.sqlite*"))
        lexical = Path(folder) / "words"
        lexical.mkdir()
        words, _ = _timed(lambda: write_lexical(lexical, (chunk.text for chunk, _ in made)))
        return Rates(
            cut=len(made) / cut,
            embedded=len(texts) / embedded,
            listed=len(made) / listed,
            words=len(made) / words,
            words_bytes=sum(each.stat().st_size for each in lexical.rglob("*") if each.is_file()) / len(made),
            read=len(keys) / read,
            cached_bytes=cached / len(keys),
            **_faiss_rates(vectors, factory, Path(folder)),
        )


def _faiss_rates(vectors: np.ndarray, factory: str, folder: Path) -> dict[str, float]:
    import faiss

    count, dimension = vectors.shape
    centres = empty_index("Flat", dimension)
    centres.add(vectors[:_PROBE_LISTS])
    multiplied, _ = _timed(lambda: centres.search(vectors, 1))
    queries = vectors[:QUERIES]
    compared, _ = _timed(lambda: ExactSearch(queries, K + 1).add(vectors, 0))
    lists, storage = lists_of(factory), factory.rpartition(",")[2]
    index = empty_index(f"IVF16,{storage}" if lists else "Flat", dimension)
    if lists:
        clustering: Any = faiss.extract_index_ivf(index).cp
        clustering.min_points_per_centroid = 1
        index.train(vectors)
        faiss.extract_index_ivf(index).nprobe = 16
    index.add(vectors)
    scanned, _ = _timed(lambda: index.search(queries, K + 1))
    file = folder / "index.faiss"
    written, _ = _timed(lambda: faiss.write_index(index, str(file)))
    return {
        "multiplied": count * _PROBE_LISTS / multiplied,
        "compared": count * len(queries) / compared,
        "scanned": count * len(queries) / scanned,
        "written": file.stat().st_size / written,
    }


def plan_build(chunks: int, dimension: int, kind: str, shards: int, rates: Rates) -> list[Step]:
    """The steps of building an index of so many chunks.

    Args:
      kind: ``auto``, ``flat``, ``ivf_flat``, ``ivf_sq8`` or a factory string of IVF with Flat or SQ8.
      shards: tasks that embed.

    Raises:
      InputError: as `planned_type`.
    """
    factory = planned_type(kind, chunks)
    lists, keys = lists_of(factory), chunks * _KEY_BYTES
    wanted = chunks * (_KEY_BYTES + _SET_BYTES)
    vector, size = 4 * dimension, index_bytes(chunks, dimension, factory)
    part, words = chunks / shards, chunks * rates.words_bytes
    steps = [
        Step("cut", shards, part / rates.cut, wanted / shards, 0),
        Step("embed", shards, part / rates.embedded, wanted / shards, chunks * rates.cached_bytes),
        Step("list", 1, chunks / rates.listed, wanted, 0),
    ]
    add = chunks / rates.read
    if lists:
        sample = min(trained_on(lists), chunks)
        comparisons = sample * lists * _iterations()
        seconds = sample / rates.read + comparisons / rates.multiplied
        steps.append(Step("train", 1, seconds, keys + sample * vector, 0))
        add += chunks * lists / rates.multiplied + chunks * QUERIES / rates.compared
    steps.append(Step("add", 1, add, keys + size + BLOCK * (vector + 4 * QUERIES), 0))
    if lists:
        # searches twice as broad until it is enough, then one for each half of what is between
        most = max(1.0, SEARCHED * lists)
        searched = 2 * most + most * math.log2(most)
        seconds = searched / lists * chunks * QUERIES / rates.scanned
        steps.append(Step("tune", 1, seconds, keys + size, 0))
    steps.append(Step("write", 1, size / rates.written, keys + size, size))
    return [*steps, Step("words", 1, chunks / rates.words, keys + words, words)]


def planned_type(kind: str, chunks: int) -> str:
    """faiss's name of the type that `index.type` means for so many chunks.

    Raises:
      InputError: for a type of which it is not known here what it takes.
    """
    factory = factory_string(kind, chunks)
    if not _KNOWN.fullmatch(factory):
        raise InputError(f"index.type {factory} cannot be planned for; set flat, ivf_flat or ivf_sq8.")
    return factory


def index_bytes(chunks: int, dimension: int, factory: str) -> int:
    """Bytes of a Flat or IVF index, in memory as in its file.

    A vector takes 4 bytes a number, or one with SQ8, and 8 for its id in a list; a list its centre.
    """
    lists = lists_of(factory)
    code = dimension if factory.endswith("SQ8") else 4 * dimension
    return chunks * (code + (8 if lists else 0)) + lists * 4 * dimension


def _iterations() -> int:
    import faiss

    kinds: Any = faiss
    return int(kinds.extract_index_ivf(empty_index("IVF1,Flat", 4)).cp.niter)


def _first_chunks(indexer: Indexer, documents: Sequence[Document]) -> list[Any]:
    made: list[Any] = []
    for _, chunks in indexer.chunks(documents):
        made += chunks
        if len(made) >= _CUT_CHUNKS:
            break
    return made


def _unit_vectors(count: int, dimension: int) -> np.ndarray:
    drawn = np.random.default_rng(0).standard_normal((count, dimension), dtype=np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    made = work()
    return time.perf_counter() - started, made
