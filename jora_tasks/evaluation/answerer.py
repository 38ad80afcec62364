"""Questions to answers in text: a base model that adapters take turns over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from jora_tasks.spec import EvaluationConfig, MeshConfig, ModelConfig

if TYPE_CHECKING:
    from jora_tasks.trainer.model import LanguageModel
    from jora_tasks.trainer.tokenizer import ChatTokenizer


class Answerer:
    """Loads the base model and tokenizer at the first question and keeps one copy of the weights."""

    def __init__(
        self, folder: Path, model: ModelConfig, mesh: MeshConfig, settings: EvaluationConfig, home: Path
    ) -> None:
        self._folder = folder
        self._home = home  # of the compiled programs
        self._weights = model
        self._mesh = mesh
        self._settings = settings

    @cached_property
    def _model(self) -> LanguageModel:
        from jora_tasks.trainer.compile_cache import use_compile_cache
        from jora_tasks.trainer.load import load_model
        from jora_tasks.trainer.mesh import make_mesh

        use_compile_cache(self._home)
        return load_model(
            self._folder,
            self._weights.dtype,
            mesh=make_mesh(self._mesh),
            quantization=self._weights.quantization,
        )

    @cached_property
    def _tokenizer(self) -> ChatTokenizer:
        from jora_tasks.trainer.tokenizer import load_tokenizer

        return load_tokenizer(self._folder)

    def answer(
        self,
        prompts: Sequence[list[int]],
        adapter: Path | None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[tuple[str, int]]:
        """Greedy answers, each with its number of tokens.

        Args:
          prompts: token ids up to where each answer begins.
          adapter: PEFT folder; None answers with the base alone.
          on_progress: as of `generate`.
        """
        from jora_tasks.evaluation.generation import generate
        from jora_tasks.trainer.export import load_adapter

        model = self._model
        if adapter is not None:
            lora_config, lora = load_adapter(adapter, model.config, mesh=model.mesh)
            model = dataclasses.replace(model, lora=lora, lora_config=lora_config)
        generated = generate(
            model,
            prompts,
            max_new_tokens=self._settings.max_new_tokens,
            eos_ids=self._tokenizer.eos_ids,
            pad_id=self._tokenizer.pad_id,
            batch_size=self._settings.batch_size,
            use_adapter=adapter is not None,
            on_progress=on_progress,
        )
        return [(self._tokenizer.decode(ids).strip(), len(ids)) for ids in generated]
