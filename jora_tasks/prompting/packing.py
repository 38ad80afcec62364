"""Whole passages into a budget of tokens; the question, the template and the labels are never cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jora_tasks.errors import InputError
from jora_tasks.prompting.conversation import source_block, source_messages
from jora_tasks.prompting.passages import Passage

if TYPE_CHECKING:
    from jora_tasks.trainer.tokenizer import ChatTokenizer, Message

Arrange = Callable[[Sequence[Passage]], list[Passage]]
Answer = Callable[[Sequence[Passage]], str]

# Of the passages that would fit but for a few tokens, by the sum of their parts, so many are tried.
_NEAR_MISSES = 3
_NEAR = 8


@dataclass(frozen=True)
class Prompt:
    """A conversation in tokens; ``input_ids[prompt_length:]`` is the answer with its end."""

    messages: list[Message]
    input_ids: list[int]
    prompt_length: int
    passages: list[Passage]
    dropped: list[Passage]


class Packer:
    """Packs prompts for one base model.

    A passage is read by the tokenizer once, whatever number of prompts it may go into, and a prompt is
    rendered as a whole once or a few times: tokens of parts do not add up exactly to those of the whole.
    So the work grows with the tokens, not with their square.
    """

    def __init__(self, tokenizer: ChatTokenizer, budget: int) -> None:
        self._tokenizer = tokenizer
        self._budget = budget
        self._costs: dict[str, int] = {}

    def pack(
        self,
        question: str,
        instruction: str,
        passages: Sequence[Passage],
        answer: Answer,
        arrange: Arrange = list,
    ) -> Prompt:
        """A prompt with the passages that fit, each whole.

        Args:
          passages: by claim on the budget; one that does not fit makes way for a shorter one.
          answer: what the model is to say, given the passages in the order of their labels.
          arrange: the order in which chosen passages stand in the prompt.

        Raises:
          InputError: if the question does not fit without any passage, or the answer has no token.
        """

        def render(chosen: Sequence[Passage]) -> Prompt:
            taken = {each.chunk_id for each in chosen}
            placed = arrange([each for each in passages if each.chunk_id in taken])
            messages = source_messages(instruction, placed, question)
            messages.append({"role": "assistant", "content": answer(placed)})
            ids, length = self._tokenizer.render(messages)
            return Prompt(messages, ids, length, placed, [])

        prompt = render([])
        self._check(prompt, question)
        room = self._budget - len(prompt.input_ids)
        while True:
            chosen = self._within(passages, room)
            prompt = render(chosen)
            excess = len(prompt.input_ids) - self._budget
            if excess <= 0:
                break
            room -= excess
        for each in self._near_misses(passages, prompt):
            longer = render([*chosen, each])
            if len(longer.input_ids) <= self._budget:
                prompt = longer
                chosen.append(each)
        return dataclasses.replace(prompt, dropped=_without(passages, chosen))

    def _within(self, passages: Sequence[Passage], room: int) -> list[Passage]:
        """The passages that fit into so many tokens, by the sum of their own."""
        chosen: list[Passage] = []
        for each in passages:
            cost = self._cost(each, len(chosen) + 1)
            if cost <= room:
                chosen.append(each)
                room -= cost
        return chosen

    def _near_misses(self, passages: Sequence[Passage], prompt: Prompt) -> list[Passage]:
        """The first passages that were left out but might fit, were it for a few tokens."""
        room = self._budget - len(prompt.input_ids) + _NEAR
        left = _without(passages, prompt.passages)
        return [each for each in left if self._cost(each, 1) <= room][:_NEAR_MISSES]

    def _cost(self, passage: Passage, number: int) -> int:
        """Tokens that the passage takes as source of this number, by itself."""
        if passage.chunk_id not in self._costs:
            self._costs[passage.chunk_id] = len(self._tokenizer.encode(source_block(1, passage)))
        return self._costs[passage.chunk_id] + len(str(number)) - 1

    def _check(self, prompt: Prompt, question: str) -> None:
        answer = prompt.messages[-1]["content"]
        if not self._tokenizer.encode(answer):
            raise InputError(
                f"The answer {answer!r} to {question!r} has no token in the base model's tokenizer; "
                "give an answer it can write."
            )
        if len(prompt.input_ids) > self._budget:
            raise InputError(
                f"The question {_shortened(question)!r} with its answer takes {len(prompt.input_ids)} tokens "
                f"without any source; raise prompts.token_budget ({self._budget}) or shorten it."
            )


def _without(passages: Sequence[Passage], taken: Sequence[Passage]) -> list[Passage]:
    ids = {each.chunk_id for each in taken}
    return [each for each in passages if each.chunk_id not in ids]


def _shortened(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
