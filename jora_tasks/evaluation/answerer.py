"""Questions to answers in text: a base model that adapters take turns over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from jora_tasks.spec import EvaluationConfig, MeshConfig, ModelConfig

if TYPE_CHECKING:
    from jora_tasks.trainer.model import LanguageModel
    from jora_tasks.trainer.tokenizer import ChatTokenizer


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
      tokens: how many were generated.
      loss: mean negative log-likelihood of the known answer's tokens, in nats, where it was asked.
    """

    text: str
    tokens: int
    loss: float | None = None


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
        known: Sequence[Sequence[int]] | None = None,
    ) -> list[Answer]:
        """Greedy answers.

        Args:
          prompts: token ids up to where each answer begins.
          adapter: PEFT folder; None answers with the base alone.
          on_progress: as of `generate_and_score`.
          known: token ids of each prompt's known answer, whose loss is asked.
        """
        from jora_tasks.evaluation.generation import generate_and_score
        from jora_tasks.trainer.export import load_adapter

        model = self._model
        if adapter is not None:
            lora_config, lora = load_adapter(adapter, model.config, mesh=model.mesh)
            model = dataclasses.replace(model, lora=lora, lora_config=lora_config)
        generated = generate_and_score(
            model,
            prompts,
            known or [()] * len(prompts),
            max_new_tokens=self._settings.max_new_tokens,
            eos_ids=self._tokenizer.eos_ids,
            pad_id=self._tokenizer.pad_id,
            batch_size=self._settings.batch_size,
            use_adapter=adapter is not None,
            on_progress=on_progress,
        )
        return [
            Answer(self._tokenizer.decode(each.tokens).strip(), len(each.tokens), each.loss)
            for each in generated
        ]
