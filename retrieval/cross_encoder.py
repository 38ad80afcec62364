"""A model that reads two texts together and gives figures for the pair."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jora_tasks.errors import InputError, first_line


class CrossEncoder:
    """A sentence-transformers cross-encoder, read at its first use."""

    def __init__(self, folder: Path, called: str) -> None:
        """Name a cross-encoder.

        Args:
          folder: its files; weights in safetensors alone, since others may be pickled.
          called: the setting that names it and its name, which errors start with.
        """
        self._folder, self.called = folder, called

    @cached_property
    def model(self) -> Any:
        """The loaded model. Raises `InputError` if the files cannot serve."""
        import sentence_transformers
        from transformers.utils import logging

        logging.disable_progress_bar()  # stages report their own progress
        try:
            return sentence_transformers.CrossEncoder(
                str(self._folder), local_files_only=True, model_kwargs={"use_safetensors": True}
            )
        except Exception as error:  # safetensors, transformers and torch each raise their own
            reason = first_line(error)
            raise InputError(
                f"{self.called} cannot be read as a cross-encoder; fetch it again or name another ({reason})."
            ) from None

    def figures(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> np.ndarray:
        """What the model says of each pair: float32 [N], or [N, labels] where it has several.

        Texts longer than the model reads are cut at their end.

        Raises:
          InputError: if a figure is NaN or infinite.
        """
        figures: np.ndarray = self.model.predict(
            list(pairs), batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True
        ).astype(np.float32)
        if not np.isfinite(figures).all():
            raise InputError(
                f"{self.called} gave NaN or infinity; its weights are damaged: fetch it again "
                "or name another."
            )
        return figures
