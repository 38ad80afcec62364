"""A second look at what was found: a cross-encoder reads question and passage together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jora_tasks.errors import InputError, first_line


class Reranker:
    """A sentence-transformers cross-encoder (Nogueira and Cho, arXiv 1901.04085)."""

    def __init__(self, folder: Path, name: str) -> None:
        """Name a cross-encoder; its first use raises `InputError` if the folder's files cannot serve."""
        self._folder, self._name = folder, name

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import CrossEncoder
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            model = CrossEncoder(str(self._folder), local_files_only=True)
            outputs = int(model.num_labels)
        except Exception as error:  # safetensors, transformers and torch each raise their own
            reason = first_line(error)
            raise InputError(
                f"retrieval.reranker {self._name} cannot be read as a cross-encoder; "
                f"fetch it again or name another ({reason})."
            ) from None
        if outputs != 1:
            raise InputError(
                f"retrieval.reranker {self._name} gives {outputs} figures for a passage instead of one; "
                "name a cross-encoder trained to rank."
            )
        return model

    def scores(self, question: str, passages: Sequence[str], batch_size: int) -> np.ndarray:
        """How well each passage answers the question: float32 [N], higher is better.

        Passages longer than the model reads are cut at their end.
        """
        if not passages:
            return np.zeros(0, np.float32)
        scores = self._model.predict(
            [(question, passage) for passage in passages],
            batch_size=batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
        ).astype(np.float32)
        if not np.isfinite(scores).all():
            raise InputError(
                f"retrieval.reranker {self._name} gave NaN or infinity; its weights are damaged: "
                "fetch it again or name another."
            )
        return scores
