"""Who answers when a question is drafted: the base model of the spec, on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from jora_tasks.evaluation.answerer import Answerer
from jora_tasks.models import base_model_folder, model_source
from jora_tasks.spec import RunSpec

if TYPE_CHECKING:
    from jora_tasks.trainer.tokenizer import Message

TOO_LONG = "too long for the model"


@dataclass(frozen=True)
class Failed:
    """A request without a reply, and why; others may have theirs."""

    reason: str


class Writer(Protocol):
    """Answers conversations."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides the answers, as far as it may be written down."""

    @property
    def at_once(self) -> int:
        """How many conversations to give it at a time."""

    def reply(self, conversations: Sequence[list[Message]]) -> list[str | Failed]:
        """One reply each, in order."""


class BaseModelWriter:
    """The base model of the spec, greedily.

    Raises:
      InputError: if there is no such model, or its tokenizer cannot be read.
    """

    def __init__(self, spec: RunSpec, home: Path, max_new_tokens: int) -> None:
        from jora_tasks.trainer.config import read_config
        from jora_tasks.trainer.tokenizer import load_tokenizer

        folder = base_model_folder(spec.model.base, home)
        source = model_source(folder, spec.model.base)
        settings = spec.evaluation.model_copy(update={"max_new_tokens": max_new_tokens})
        self.identity = {"model": source.name, "digest": source.digest, **spec.model.weights()}
        self.at_once = settings.batch_size
        self._tokenizer = load_tokenizer(folder)
        self._most = read_config(folder).max_positions - max_new_tokens
        self._answerer = Answerer(folder, spec.model, spec.training.mesh, settings, home)

    def reply(self, conversations: Sequence[list[Message]]) -> list[str | Failed]:
        prompts = [self._tokenizer.prompt_ids(messages) for messages in conversations]
        fitting = [prompt for prompt in prompts if len(prompt) <= self._most]
        answers = iter(self._answerer.answer(fitting, None) if fitting else [])
        return [next(answers).text if len(prompt) <= self._most else Failed(TOO_LONG) for prompt in prompts]
