"""Search by words: BM25 over the chunks, kept as arrays that are mapped into memory.

Robertson et al., "Okapi at TREC-3" (1994), in Lucene's form (Kamphuis et al., ECIR 2020), by bm25s,
which adds each word's share of the score up when the index is built.
"""

from __future__ import annotations

import logging
import sys
from array import array
from collections.abc import Iterable
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from jora_tasks.errors import InputError
from retrieval.words import find_words, terms, terms_of

LEXICAL = "lexical"


def write_lexical(folder: Path, texts: Iterable[str]) -> int:
    """Write the folder ``lexical`` of an index.

    The same texts in the same order give the same bytes.

    Args:
      folder: of the index.
      texts: of each chunk, heading included, in the order of the chunks.

    Returns:
      The number of different terms.
    """
    vocabulary: dict[str, int] = {}

    @cache
    def ids_of(word: str) -> tuple[int, ...]:
        # by first appearance: bm25s's own numbering follows the order of a set, another in each process
        return tuple(vocabulary.setdefault(term, len(vocabulary)) for term in terms_of(word))

    ids = [array("I", chain.from_iterable(map(ids_of, find_words(text)))) for text in texts]
    made = _bm25s().BM25(method="lucene")
    with np.errstate(invalid="ignore"):  # no term at all: the mean length is 0
        made.index((ids, vocabulary), create_empty_token=False, show_progress=False)
    made.save(folder / LEXICAL, show_progress=False)
    return len(vocabulary)


class LexicalIndex:
    """The folder that `write_lexical` wrote, opened for search."""

    def __init__(self, folder: Path, chunks: int) -> None:
        """Open it.

        Args:
          folder: of the index.
          chunks: how many the index has.

        Raises:
          InputError: if the files are missing, damaged or of another number of chunks.
        """
        try:
            self._bm25 = _bm25s().BM25.load(folder / LEXICAL, mmap=True, show_progress=False)
            count = self._bm25.scores["num_docs"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"The lexical index in {folder} cannot be read ({type(error).__name__}); "
                "build the index again with `jora index`."
            ) from None
        if count != chunks:
            raise InputError(
                f"The lexical index in {folder} is of {count} chunks, not of {chunks}; "
                "build the index again with `jora index`."
            )

    def search(self, question: str, k: int, allowed: np.ndarray | None = None) -> list[tuple[int, float]]:
        """The rows of the k best chunks with their BM25 scores, best first; equal scores by row.

        Only chunks with a term of the question are found, so a question without any known one finds none.

        Args:
          allowed: bool [N], which chunks may be found; all by default.
        """
        known = self._bm25.get_tokens_ids(list(terms(question)))
        if not known:
            return []
        scores = self._bm25.get_scores_from_ids(known)
        rows = np.flatnonzero(scores > 0 if allowed is None else (scores > 0) & allowed)
        if len(rows) > k:
            least = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
            rows = rows[scores[rows] >= least]
        best = rows[np.argsort(-scores[rows], kind="stable")][:k]
        return [(int(row), float(scores[row])) for row in best]


def _bm25s() -> Any:
    """bm25s without JAX: where that is installed, it would run a computation on a device at import."""
    if "bm25s" not in sys.modules:
        jax = sys.modules.get("jax", ...)
        sys.modules["jax"] = None  # type: ignore[assignment]  # `import jax.lax` then says there is none
        try:
            import bm25s  # noqa: F401
        finally:
            if jax is ...:
                del sys.modules["jax"]
            else:
                sys.modules["jax"] = jax
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets DEBUG
    return sys.modules["bm25s"]
