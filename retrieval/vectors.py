"""Vectors in faiss: which type by size, and how closely it is searched by measured recall."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jora_tasks.errors import InputError
from retrieval.embedding import check_vectors
from retrieval.tuning import ExactSearch, K, Rows, tune

AUTO, FLAT, IVF_FLAT, IVF_SQ8 = "auto", "flat", "ivf_flat", "ivf_sq8"
EXACT_UP_TO = 200_000
"""Vectors up to which `AUTO` searches all of them: exact, and fast enough."""

_MOST = {"IVF": 2**20, "HNSW": 512}  # lists, and links of a vector

QUERIES = 512  # on which recall is measured
BLOCK = 16_384  # vectors taken at once
_TRAINED_ON = 64  # vectors a list of IVF
_SEED = 0


class InMemory:
    """`Rows` of an array, float32 [N, D]."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def __len__(self) -> int:
        return len(self._vectors)

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        return self._vectors[np.asarray(rows, dtype=np.int64)]


@dataclass(frozen=True)
class Built:
    """An index in memory and what was measured of it.

    Attributes:
      index: the faiss index; row i is id i.
      factory: faiss's name of its type.
      breadth: ``nprobe`` or ``efSearch`` as tuned, by that name; empty where there is nothing to tune.
      recall: recall@10 against exact search, over ``queries`` of its own vectors, itself not counted;
        1 of an exact type. Training did not see them, so that they are found as others will be.
      recall_bound: what the recall of other queries is above, with 95 % confidence.
    """

    index: Any
    factory: str
    breadth: dict[str, int]
    recall: float
    recall_bound: float
    queries: int

    def told(self) -> dict[str, Any]:
        """The same in figures, for a manifest."""
        measured = {
            "recall_at_10": round(self.recall, 4),
            "recall_bound": round(self.recall_bound, 4),
            "recall_queries": self.queries,
        }
        return {"type": self.factory, **self.breadth, **(measured if self.queries else {})}


def factory_string(kind: str, count: int) -> str:
    """faiss's name of an index type for so many vectors.

    >>> factory_string("auto", 1_000), factory_string("auto", 1_000_000)
    ('Flat', 'IVF2048,Flat')
    """
    if kind == AUTO:
        kind = FLAT if count <= EXACT_UP_TO else IVF_FLAT
    if kind == FLAT:
        return "Flat"
    if kind in (IVF_FLAT, IVF_SQ8):
        # twice the root of the count, as a power of two; a list needs vectors to be trained on
        lists = 2 ** round(math.log2(2 * math.sqrt(max(count, 1))))
        return f"IVF{max(1, min(lists, count // 8))},{'Flat' if kind == IVF_FLAT else 'SQ8'}"
    return kind


def lists_of(factory: str) -> int:
    """Number of an IVF type's lists; 0 of a type without."""
    found = re.search(r"IVF(\d+)", factory)
    return int(found[1]) if found else 0


def trained_on(lists: int) -> int:
    """Vectors that an index with so many lists is trained on, of those there are."""
    return max(_TRAINED_ON * lists, 65_536)


def empty_index(factory: str, dimension: int) -> Any:
    """An index of this type for inner products, before training.

    Raises:
      InputError: for a type that faiss does not know, or one whose ids could not be trusted.
    """
    import faiss

    # Rows are the ids. A map of ids adds nothing to that, and IDMap2 over IVF was seen to give wrong ones.
    if re.search(r"IDMap", factory):
        raise InputError(
            f"index.type {factory}: an IDMap keeps ids of its own, which are not always right; leave it out, "
            "the index's rows are the ids."
        )
    for part, most in _MOST.items():  # faiss would take the memory for all of them at once
        for number in re.findall(rf"{part}(\d+)", factory):
            if int(number) > most:
                raise InputError(
                    f"index.type {factory}: {part}{number} is more than any index needs; "
                    f"give at most {part}{most}."
                )
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except Exception:  # faiss tells places in its own source
        raise InputError(
            f"index.type {factory} cannot be made for vectors of {dimension} numbers; use auto, "
            "flat, ivf_flat, ivf_sq8 or another factory string of faiss."
        ) from None
    return index


def build(
    rows: Rows,
    dimension: int,
    kind: str,
    recall_target: float,
    *,
    name: str,
    done: Callable[[int], None] | None = None,
) -> Built:
    """An index of all the rows, searched as broadly as the target needs.

    The same rows in the same order give the same index: training is seeded, and nothing is ever
    taken out of an index.

    Args:
      rows: the vectors.
      dimension: D.
      kind: `AUTO`, `FLAT`, `IVF_FLAT`, `IVF_SQ8` or a factory string of faiss.
      recall_target: least recall@10 against exact search, for types that are not exact.
      name: of the embedder, for errors.
      done: told how many vectors were added.

    Raises:
      InputError: see `empty_index`; for vectors that cannot be compared, or if no breadth of search reaches
        the target.
    """
    count = len(rows)
    factory = factory_string(kind, count)
    index = empty_index(factory, dimension)
    sample = _sample(np.arange(count), QUERIES)
    if not index.is_trained:
        _train(index, rows, factory, sample)
    exact = _is_exact(index)
    search = None if exact else ExactSearch(rows.take(sample), K + 1)
    for first in range(0, count, BLOCK):
        block = rows.take(range(first, min(first + BLOCK, count)))
        check_vectors(block, name)
        index.add(block)
        if search:
            search.add(block, first)
        if done:
            done(min(first + BLOCK, count))
    if index.ntotal != count:
        raise InputError(f"index.type {factory} kept {index.ntotal} of {count} vectors; use another type.")
    if search is None or count < 2:
        return Built(index, factory, {}, 1.0, 1.0, 0)
    breadth, recall, bound = tune(index, rows, sample, search, recall_target)
    if recall < recall_target:
        tried = ", ".join(f"{name} {value}" for name, value in breadth.items())
        raise InputError(
            f"index.type {factory} finds {recall:.3f} of the nearest {K}{f' with {tried}' if tried else ''}, "
            f"less than index.recall_target {recall_target}; lower the target or use ivf_flat or flat."
        )
    return Built(index, factory, breadth, recall, bound, len(sample))


def open_index(file: Path) -> Any:
    """A written index, by memory map where its type can be."""
    import faiss

    try:
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError:  # the type has no way to be mapped
        index = faiss.read_index(str(file))
    return index


def search(
    index: Any, queries: np.ndarray, k: int, rows: Sequence[int] | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows: scores f32 [N, k] and rows int64 [N, k], -1 where there are no more.

    Args:
      index: as `build` or `open_index` gives it.
      queries: float32 [N, D].
      k: how many.
      rows: those that may be found; all by default.

    Raises:
      InputError: if the type cannot search among some rows.
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if rows is None:
        return index.search(queries, k)
    import faiss

    kinds: Any = faiss  # faiss's own stubs know neither these types nor their fields
    selector = kinds.IDSelectorBatch(np.asarray(rows, dtype=np.int64))
    among = kinds.SearchParameters(sel=selector)
    inner = kinds.downcast_index(index)
    if (ivf := kinds.try_extract_index_ivf(index)) is not None:
        # a few rows may all lie in lists far from the question's: every list is looked into
        among = kinds.SearchParametersIVF(sel=selector, nprobe=ivf.nlist)
    elif isinstance(inner, kinds.IndexHNSW):
        index = inner.storage  # the graph's ways to the few may lead over the others
    try:
        return index.search(queries, k, params=among)
    except RuntimeError:
        raise InputError(
            "retrieval.filters: this index.type cannot search among some of its chunks; use auto, flat, "
            "ivf_flat or ivf_sq8."
        ) from None


def _is_exact(index: Any) -> bool:
    import faiss

    return isinstance(faiss.downcast_index(index), faiss.IndexFlat)


def _sample(rows: np.ndarray, size: int) -> np.ndarray:
    """At most ``size`` of the rows, sorted, the same each time."""
    if len(rows) <= size:
        return rows
    return np.sort(np.random.default_rng(_SEED).choice(rows, size, replace=False))


def _train(index: Any, rows: Rows, factory: str, queries: np.ndarray) -> None:
    """Train an index on rows that are no queries, as far as there are enough.

    The centre of a list is drawn to each vector that it was made of: such a vector is found more easily
    than a new one, and the recall of a search for it tells too much.
    """
    import faiss

    wanted = trained_on(lists_of(factory))
    others = np.setdiff1d(np.arange(len(rows)), queries)
    sample = rows.take(_sample(others if len(others) > len(rows) // 2 else np.arange(len(rows)), wanted))
    if (ivf := faiss.try_extract_index_ivf(index)) is not None:
        clustering = ivf.cp
        clustering.min_points_per_centroid = 1  # a small corpus is no reason to warn
        clustering.max_points_per_centroid = _TRAINED_ON
    try:
        index.train(sample)
    except RuntimeError:
        raise InputError(
            f"index.type {factory} cannot be trained on as few as {len(sample)} vectors; use flat or auto."
        ) from None
