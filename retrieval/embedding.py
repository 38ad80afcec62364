"""Texts to vectors: a sentence-transformers model and what identifies it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jora_tasks.errors import InputError, first_line

Done = Callable[[int], None]
Encode = Callable[[np.ndarray], np.ndarray]  # token ids, int64 [N, L] -> vectors, float32 [N, D]

TORCH, ONNX_INT8 = "torch", "onnx_int8"
DEFAULT_BATCH_TOKENS = 2048

# Without any of these, some tokenizer classes make one of a vocabulary of their own.
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


@dataclass(frozen=True)
class EmbedderIdentity:
    """What an index remembers of the embedder that built it; vectors of two that differ do not compare.

    Attributes:
      name: as the spec has it, without a local path.
      digest: of the model folder's files.
      dimension: of the vectors.
      normalised: vectors have length 1, so that the inner product is the cosine.
      max_seq_length: tokens, start and end tokens included, beyond which text is cut.
      pooling: how the tokens' vectors become one, as sentence-transformers names it.
      query_prompt, passage_prompt: what is put before a question and before a chunk.
      backend: what computes the vectors.
    """

    name: str
    digest: str
    dimension: int
    normalised: bool
    max_seq_length: int
    pooling: str = ""
    query_prompt: str = ""
    passage_prompt: str = ""
    backend: str = TORCH

    def record(self) -> dict[str, Any]:
        return asdict(self)


class Embedder:
    """A sentence-transformers model on the CPU, or on the accelerator torch finds.

    Texts of the same number of tokens are computed together, so that none is padded: on a CPU a
    text's vector then has the same bits whatever it is computed with.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        digest: str,
        *,
        backend: str = TORCH,
        query_prompt: str = "",
        passage_prompt: str = "",
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        cache_folder: Path | None = None,
    ) -> None:
        """Name an embedder; its first use raises `InputError` if the folder's files cannot serve.

        Args:
          folder: of a sentence-transformers model.
          name, digest: as in `EmbedderIdentity`.
          backend: `TORCH` or `ONNX_INT8`.
          query_prompt, passage_prompt: put before questions and chunks; if empty, the model's own.
          batch_tokens: most tokens computed at once.
          cache_folder: where `ONNX_INT8` keeps the model it makes.
        """
        self.name, self.digest, self.backend = name, digest, backend
        self.prompts = query_prompt, passage_prompt
        self._folder, self._batch_tokens, self._cache_folder = folder, batch_tokens, cache_folder

    @cached_property
    def model(self) -> Any:
        """The `SentenceTransformer`, tried once."""
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()  # stages report their own progress
        if not any(next(self._folder.rglob(pattern), None) for pattern in _TOKENIZER_FILES):
            raise InputError(
                f"index.embedder {self.name} has no tokenizer; put its tokenizer.json, vocab.txt or "
                "sentencepiece model into its folder."
            )
        try:
            weights = {"use_safetensors": True}  # others may be pickled
            model = SentenceTransformer(str(self._folder), local_files_only=True, model_kwargs=weights)
            _check_use(model)
        except Exception as error:  # safetensors, transformers and torch each raise their own
            reason = first_line(error)
            raise InputError(
                f"index.embedder {self.name} cannot be read as a sentence-transformers model; "
                f"fetch it again or name another ({reason})."
            ) from None
        return model

    @cached_property
    def identity(self) -> EmbedderIdentity:
        model = self.model
        query, passage = self.prompts
        return EmbedderIdentity(
            self.name,
            self.digest,
            int(model.get_embedding_dimension()),
            True,
            int(model.max_seq_length or model.tokenizer.model_max_length),
            _pooling(model),
            query or _own_prompt(model, "query"),
            passage or _own_prompt(model, "document", "passage", "corpus"),
            self.backend,
        )

    @cached_property
    def tokens_around(self) -> int:
        """Tokens that a chunk's embedding has beside its own: start, end and the prompt's."""
        return len(self.model.tokenizer(self.identity.passage_prompt)["input_ids"])

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The text's tokens as character spans, without start and end tokens."""
        return self._splitter.encode(text, add_special_tokens=False).offsets

    @cached_property
    def _splitter(self) -> Any:
        """The tokenizer's fast part alone: texts are cut by it many times, whole and without padding."""
        from tokenizers import Tokenizer

        copy = Tokenizer.from_str(self.model.tokenizer.backend_tokenizer.to_str())
        copy.no_truncation()
        copy.no_padding()
        return copy

    def embed_texts(self, texts: Sequence[str], done: Done | None = None) -> np.ndarray:
        """Vectors of passages, float32 [N, D], each of length 1, in the order of the texts."""
        return self._in_order(texts, self.identity.passage_prompt, done)

    def embed_batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], np.ndarray]]:
        """As `embed_texts`, batch by batch: which texts, and their vectors. The longest come first."""
        return self._batches(texts, self.identity.passage_prompt)

    def embed_questions(self, texts: Sequence[str], done: Done | None = None) -> np.ndarray:
        """Vectors of questions, with the query prompt instead of the passages'; as `embed_texts`."""
        return self._in_order(texts, self.identity.query_prompt, done)

    def _in_order(self, texts: Sequence[str], prompt: str, done: Done | None) -> np.ndarray:
        vectors = np.zeros((len(texts), self.identity.dimension), np.float32)
        count = 0
        for rows, part in self._batches(texts, prompt):
            vectors[rows] = part
            count += len(rows)
            if done:
                done(count)
        return vectors

    def _batches(self, texts: Sequence[str], prompt: str) -> Iterator[tuple[list[int], np.ndarray]]:
        if not texts:
            return
        plain = _takes_tokens_alone(self.model)
        if plain:
            tokens = self.model.tokenizer(
                [prompt + text for text in texts],
                truncation=True,
                max_length=self.identity.max_seq_length,
                verbose=False,
            )["input_ids"]
            groups = same_length([len(each) for each in tokens], self._batch_tokens, self._most_texts)
        else:
            groups = same_length([len(text) for text in texts], self._batch_tokens, 1)

        def encode(rows: list[int]) -> tuple[list[int], np.ndarray]:
            if plain:
                vectors = self._encode(np.array([tokens[row] for row in rows], np.int64))
            else:  # its own way with text, prompts or both
                vectors = self.model.encode([texts[row] for row in rows], prompt=prompt or None)
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            return rows, vectors / np.where(norms > 0, norms, 1)

        own_threads = not plain or self.backend == ONNX_INT8
        with contextlib.nullcontext(map) if own_threads else _a_batch_a_core(self.model) as each:
            for rows, vectors in each(encode, groups):
                check_vectors(vectors, self.name)
                yield rows, vectors

    @cached_property
    def _encode(self) -> Encode:
        if self.backend == ONNX_INT8:
            from retrieval.onnx_int8 import int8_encoder

            return int8_encoder(self.model, self.digest, self._cache_folder or self._folder)
        return _torch_encoder(self.model)

    @property
    def _most_texts(self) -> int:
        # int8 scales activations by what is computed together: alone, a text's vector is its own
        return 1 if self.backend == ONNX_INT8 else 4096

    def float32(self) -> Embedder:
        """The same embedder without quantisation, to compare with."""
        query, passage = self.prompts
        other = Embedder(self._folder, self.name, self.digest, query_prompt=query, passage_prompt=passage)
        other.model = self.model
        return other


def same_length(lengths: Sequence[int], batch_tokens: int, most: int) -> Iterator[list[int]]:
    """Groups of positions whose lengths are equal, the longest first.

    Args:
      lengths: tokens of each text.
      batch_tokens: most tokens of a group, unless a single text has more.
      most: most texts of a group.
    """
    group: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[position]
        full = len(group) >= most or (len(group) + 1) * length > batch_tokens
        if group and (full or lengths[group[0]] != length):
            yield group
            group = []
        group.append(position)
    if group:
        yield group


@contextlib.contextmanager
def _a_batch_a_core(model: Any) -> Iterator[Any]:
    """A ``map`` that computes as many batches at a time as there are cores, each by one thread.

    Threads that share a batch split it by its size, and round differently: a text's vector would depend on
    what is computed beside it. On an accelerator it is Python's own.
    """
    import torch

    cores = torch.get_num_threads()
    if model.device.type != "cpu" or cores == 1:
        yield map
        return
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(cores)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)


def _torch_encoder(model: Any) -> Encode:
    import torch

    def encode(tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            # no mask: nothing is padded, and attention without one is faster
            features = model({"input_ids": torch.from_numpy(tokens).to(model.device)})
            return features["sentence_embedding"].float().cpu().numpy()

    return encode


def _takes_tokens_alone(model: Any) -> bool:
    """Whether text goes in as token ids of a prompt and the text, with nothing else to know of them."""
    from sentence_transformers.models import Pooling, Transformer

    first = model[0]
    return (
        type(first) is Transformer
        and set(first.modality_config) == {"text"}
        and first.query_expansion is None
        and first.query_length is first.document_length is None
        and not any(isinstance(module, Pooling) and not module.include_prompt for module in model)
    )


def _pooling(model: Any) -> str:
    """Pooling modes of the model, joined by ``+``; empty where it has none."""
    modes = [module.pooling_mode for module in model if hasattr(module, "pooling_mode")]
    return "+".join("+".join(mode) if isinstance(mode, tuple) else mode for mode in modes)


def _own_prompt(model: Any, *names: str) -> str:
    """The first of these prompts that the model knows, as sentence-transformers chooses it."""
    known = next((name for name in names if name in model.prompts), model.default_prompt_name)
    return (model.prompts[known] if known else "") or ""


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


def embedding_text(
    text: str, heading: str, offsets: Callable[[str], list[tuple[int, int]]], room: int
) -> str:
    """What is embedded for a chunk: its heading path, shortened to ``room`` tokens, then its text."""
    spans = offsets(heading)
    if len(spans) > room:
        # the innermost headings tell most, so the front goes
        heading = heading[spans[len(spans) - room][0] :] if room > 0 else ""
    return f"{heading}\n{text}" if heading else text
