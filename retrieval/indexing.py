"""Documents to chunks with vectors, at the cost of what is new: the rest comes from the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import PurePosixPath
from typing import TypeVar

import numpy as np

from jora_tasks.errors import InputError
from retrieval.cache import Cache, text_key
from retrieval.chunking import CHUNKER, Chunk, Cut, cut_document, make_chunk
from retrieval.documents import Document
from retrieval.embedding import ONNX_INT8, Embedder, EmbedderIdentity, embedding_text

T = TypeVar("T")

FACTS = ("identity", "tokens_around", "cosine")
"""What a cache knows of its embedder by these names."""

WINDOW = 8192  # chunks sorted by length together: what is in memory of the texts to embed
_DOCUMENTS_AT_ONCE = 256
_COMPARED = 64  # chunks on which quantised vectors are compared with float32


@dataclass(frozen=True)
class Cutting:
    """How documents are cut: most tokens of a chunk, and most that it repeats of the one before."""

    chunk_tokens: int
    chunk_overlap: int = 0


class Indexer:
    """Cuts and embeds documents, each text once.

    The embedder is opened only if something is new to the cache.
    """

    def __init__(self, embedder: Embedder, cache: Cache, cutting: Cutting) -> None:
        self._embedder, self._cache, self._cutting = embedder, cache, cutting

    @cached_property
    def identity(self) -> EmbedderIdentity:
        """The embedder's, from the cache if it is known there."""
        known = self._cache.fact("identity")
        if known is None:
            identity = self._embedder.identity
            self._cache.add_fact("identity", json.dumps(identity.record()))
            return identity
        return EmbedderIdentity(**(json.loads(known) | {"name": self._embedder.name}))

    @cached_property
    def heading_room(self) -> int:
        """Tokens left for the heading path before a full chunk: an embedder cuts longer text unasked.

        Raises:
          InputError: if the embedder does not read a full chunk.
        """
        known = self._cache.fact("tokens_around")
        around = self._embedder.tokens_around if known is None else int(known)
        if known is None:
            self._cache.add_fact("tokens_around", str(around))
        longest = self.identity.max_seq_length - around
        if self._cutting.chunk_tokens > longest:
            raise InputError(
                f"index.chunk_tokens is {self._cutting.chunk_tokens}, but the embedder {self._embedder.name} "
                f"reads only {longest} tokens of a text; set index.chunk_tokens to at most {longest}."
            )
        # one token for the newline in between, where the embedder has one
        return max(0, longest - self._cutting.chunk_tokens - 1)

    def chunks(self, documents: Iterable[Document]) -> Iterator[tuple[Document, list[tuple[Chunk, bytes]]]]:
        """Each document with its chunks in order, each with the key of its vector."""
        for part in _parts(documents, _DOCUMENTS_AT_ONCE):
            keys = [self.cut_key(document) for document in part]
            known = self._cache.cuts(keys)
            made = {}
            for document, key in zip(part, keys, strict=True):
                if key not in known:
                    known[key] = made[key] = self._cut(document)
            self._cache.add_cuts(made)
            for document, key in zip(part, keys, strict=True):
                yield document, [(self._chunk(document, cut), vector) for cut, vector in known[key]]

    def embed(
        self, chunks: Iterable[tuple[Chunk, bytes]], missing: set[bytes], done: Callable[[int], None]
    ) -> None:
        """Put missing vectors into the cache, batch by batch.

        Args:
          chunks: with the keys of their vectors; all that have a missing one.
          missing: keys of vectors; emptied.
          done: told how many there are now.
        """
        window: dict[bytes, str] = {}
        count = 0
        for chunk, key in chunks:
            if key in missing:
                missing.remove(key)
                window[key] = self._text(chunk)
            if len(window) >= WINDOW or (window and not missing):
                count = self._embed(window, count, done)
                window = {}
            if not missing:
                break

    def _embed(self, window: dict[bytes, str], count: int, done: Callable[[int], None]) -> int:
        keys, texts = list(window), list(window.values())
        for rows, vectors in self._embedder.embed_batches(texts):
            self._cache.add_vectors([keys[row] for row in rows], vectors)
            count += len(rows)
            done(count)
        if texts and self._embedder.backend == ONNX_INT8 and self._cache.fact("cosine") is None:
            self._compare(keys[:_COMPARED], texts[:_COMPARED])
        return count

    def _compare(self, keys: Sequence[bytes], texts: Sequence[str]) -> None:
        ours = self._cache.vectors(keys, self.identity.dimension)
        cosines = np.einsum("nd,nd->n", ours, self._embedder.float32().embed_texts(texts))
        told = {"mean": float(cosines.mean()), "min": float(cosines.min()), "chunks": len(texts)}
        self._cache.add_fact("cosine", json.dumps(told))

    @property
    def cosine_to_float32(self) -> dict[str, float] | None:
        """How close quantised vectors are to float32 ones, as measured on the first that were made."""
        known = self._cache.fact("cosine")
        return json.loads(known) if known else None

    def cut_key(self, document: Document) -> bytes:
        """What decides how a document is cut and what is embedded of it."""
        cutting = [CHUNKER, self._cutting.chunk_tokens, self._cutting.chunk_overlap, self.heading_room]
        kind = PurePosixPath(document.source).suffix.lower()
        text = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest()
        return hashlib.sha256(json.dumps([cutting, kind, document.title, text]).encode()).digest()

    def _cut(self, document: Document) -> list[tuple[Cut, bytes]]:
        cuts = cut_document(
            document, self._embedder.offsets, self._cutting.chunk_tokens, self._cutting.chunk_overlap
        )
        return [(cut, text_key(self._text(self._chunk(document, cut)))) for cut in cuts]

    def _chunk(self, document: Document, cut: Cut) -> Chunk:
        return make_chunk(document, cut, self._cutting.chunk_tokens, self._cutting.chunk_overlap)

    def _text(self, chunk: Chunk) -> str:
        return embedding_text(chunk.text, chunk.heading, self._embedder.offsets, self.heading_room)


class CachedRows:
    """The vectors of an index's rows, from the cache (`retrieval.vectors.Rows`)."""

    def __init__(self, cache: Cache, keys: Sequence[bytes], dimension: int) -> None:
        self._cache, self._keys, self._dimension = cache, keys, dimension

    def __len__(self) -> int:
        return len(self._keys)

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        return self._cache.vectors([self._keys[row] for row in rows], self._dimension)


def _parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of so many; the last may be shorter."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part
