"""What the model is told and what it is to answer: instruction, numbered sources, question, citations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from jora_tasks.prompting.draws import draws
from jora_tasks.spec import PromptsConfig

if TYPE_CHECKING:
    from jora_tasks.trainer.tokenizer import Message


class SourceText(Protocol):
    """What of a source the model sees."""

    @property
    def heading(self) -> str: ...
    @property
    def text(self) -> str: ...


def served_instruction(config: PromptsConfig) -> str:
    """What the model is told before sources outside training."""
    return _with_citing(config.instruction, config)


def training_instruction(config: PromptsConfig, question_id: str) -> str:
    """The phrasing that seed and question draw out of all."""
    phrasings = (config.instruction, *config.further_instructions)
    return _with_citing(draws(config.seed, question_id, "instruction").choice(phrasings), config)


def source_messages(instruction: str, sources: Sequence[SourceText], question: str) -> list[Message]:
    """The system and user messages: the instruction, then numbered sources and the question.

    A source looks like ``[1] (Title › Heading)``, then its text on the next lines.
    """
    blocks = [source_block(number, source) for number, source in enumerate(sources, start=1)]
    return [
        {"role": "system", "content": instruction},
        {"role": "user", "content": "".join([*blocks, f"Question: {question}"])},
    ]


def source_block(number: int, source: SourceText) -> str:
    """One source with its label, as it stands in a prompt."""
    return f"[{number}] ({source.heading})\n{source.text}\n\n"


def cited(answer: str, labels: Sequence[int]) -> str:
    """The answer with the labels of its sources.

    >>> cited("30 days", [2, 4])
    '30 days [2][4]'
    """
    return f"{answer} {''.join(f'[{label}]' for label in labels)}" if labels else answer


def _with_citing(instruction: str, config: PromptsConfig) -> str:
    return f"{instruction} {config.cite_instruction}" if config.cite else instruction
