"""Texts to vectors: a sentence-transformers model and what identifies it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jora_tasks.errors import InputError
from retrieval.chunking import Chunk

Done = Callable[[int], None]

# Without any of these, some tokenizer classes make one of a vocabulary of their own.
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


@dataclass(frozen=True)
class EmbedderIdentity:
    """What an index remembers of the embedder that built it.

    Attributes:
      name: as the spec has it, without a local path.
      digest: of the model folder's files.
      dimension: of the vectors.
      normalised: vectors have length 1, so that the inner product is the cosine.
      max_seq_length: tokens, start and end tokens included, beyond which text is cut.
    """

    name: str
    digest: str
    dimension: int
    normalised: bool
    max_seq_length: int

    def record(self) -> dict[str, Any]:
        return asdict(self)


class Embedder:
    """A sentence-transformers model on the CPU, or on the accelerator torch finds."""

    def __init__(self, folder: Path, name: str, digest: str) -> None:
        """Name an embedder; its first use raises `InputError` if the folder's files cannot serve."""
        self._folder, self._name, self._digest = folder, name, digest

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()  # stages report their own progress
        if not any(next(self._folder.rglob(pattern), None) for pattern in _TOKENIZER_FILES):
            raise InputError(
                f"index.embedder {self._name} has no tokenizer; put its tokenizer.json, vocab.txt or "
                "sentencepiece model into its folder."
            )
        try:
            model = SentenceTransformer(str(self._folder), local_files_only=True)
            _check_use(model)
        except Exception as error:  # safetensors, transformers and torch each raise their own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"index.embedder {self._name} cannot be read as a sentence-transformers model; "
                f"fetch it again or name another ({reason})."
            ) from None
        return model

    @cached_property
    def identity(self) -> EmbedderIdentity:
        model = self._model
        return EmbedderIdentity(
            self._name,
            self._digest,
            int(model.get_embedding_dimension()),
            True,
            int(model.max_seq_length or model.tokenizer.model_max_length),
        )

    @cached_property
    def start_and_end_tokens(self) -> int:
        return len(self._model.tokenizer("")["input_ids"])

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The text's tokens as character spans, without start and end tokens."""
        encoded = self._model.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
        )
        return encoded["offset_mapping"]

    def embed_texts(self, texts: Sequence[str], batch_size: int, done: Done | None = None) -> np.ndarray:
        """Vectors of passages, float32 [N, D], each of length 1, in the order of the texts."""
        return self._embed(self._model.encode_document, texts, batch_size, done)

    def embed_questions(self, texts: Sequence[str], batch_size: int, done: Done | None = None) -> np.ndarray:
        """Vectors of questions, with the model's own query prompt if it has one; as `embed_texts`."""
        return self._embed(self._model.encode_query, texts, batch_size, done)

    def _embed(self, encode: Any, texts: Sequence[str], batch_size: int, done: Done | None) -> np.ndarray:
        vectors = np.zeros((len(texts), self.identity.dimension), np.float32)
        # longest first: little padding, and what does not fit in memory fails at once
        order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i))
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            vectors[batch] = encode(
                [texts[i] for i in batch],
                batch_size=batch_size,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
            if done:
                done(first + len(batch))
        check_vectors(vectors, self._name)
        return vectors


def _check_use(model: Any) -> None:
    """Use a model once as `Embedder` does: what its files lack may show only then."""
    texts = ["A text.", "A text of another length, which needs padding."]
    model.tokenizer(texts, return_offsets_mapping=True)
    model.encode_query(texts[:1])
    shape, dimension = model.encode_document(texts).shape, model.get_embedding_dimension()
    if shape != (len(texts), dimension):
        raise ValueError(f"vectors of {shape[-1]} instead of {dimension} numbers")


def check_vectors(vectors: np.ndarray, name: str) -> None:
    """Refuse vectors that cannot be compared.

    Raises:
      InputError: if one is not finite or has no length; faiss would take it and never find it.
    """
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1) | (np.linalg.norm(vectors, axis=1) < 0.5))
    if len(bad):
        raise InputError(
            f"The embedder {name} gave {len(bad)} of {len(vectors)} texts a vector with NaN, infinity or "
            "zero length; its weights are damaged or of a wrong type: fetch it again or name another."
        )


def embedding_text(chunk: Chunk, offsets: Callable[[str], list[tuple[int, int]]], room: int) -> str:
    """What is embedded for a chunk: its heading path, shortened to ``room`` tokens, then its text."""
    spans = offsets(chunk.heading)
    heading = chunk.heading
    if len(spans) > room:
        # the innermost headings tell most, so the front goes
        heading = chunk.heading[spans[len(spans) - room][0] :] if room > 0 else ""
    return f"{heading}\n{chunk.text}" if heading else chunk.text
