"""A second look at what was found: a cross-encoder reads question and passage together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from jora_tasks.errors import InputError
from retrieval.cross_encoder import CrossEncoder


class Reranker:
    """A sentence-transformers cross-encoder (Nogueira and Cho, arXiv 1901.04085)."""

    def __init__(self, folder: Path, name: str) -> None:
        """Name a cross-encoder; its first use raises `InputError` if the folder's files cannot serve."""
        self._folder, self._name = folder, name

    @cached_property
    def _encoder(self) -> CrossEncoder:
        encoder = CrossEncoder(self._folder, f"retrieval.reranker {self._name}")
        if (outputs := int(encoder.model.num_labels)) != 1:
            raise InputError(
                f"{encoder.called} gives {outputs} figures for a passage instead of one; "
                "name a cross-encoder trained to rank."
            )
        return encoder

    def scores(self, question: str, passages: Sequence[str], batch_size: int) -> np.ndarray:
        """How well each passage answers the question: float32 [N], higher is better.

        Passages longer than the model reads are cut at their end.
        """
        if not passages:
            return np.zeros(0, np.float32)
        return self._encoder.figures([(question, passage) for passage in passages], batch_size)
