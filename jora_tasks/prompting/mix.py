"""General instructions among the training prompts, so that an adapter keeps what the base could do."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jora_tasks.errors import InputError
from jora_tasks.prompting.overlap import Asked

if TYPE_CHECKING:
    from jora_tasks.trainer.data import Conversation


def mixed_in(questions: int, fraction: float) -> int:
    """How many instructions make this share of all training examples, beside the questions.

    >>> mixed_in(300, 0.25)
    100
    """
    return round(questions * fraction / (1 - fraction))


def instruction_id(conversation: Conversation) -> str:
    """The id of the example that a general instruction makes."""
    return f"instruction:{conversation.id}"


def asked_of(conversation: Conversation) -> Asked:
    """What of a general instruction may overlap a held-out question: what is asked, and the answer."""
    asked = [message["content"] for message in conversation.messages if message["role"] == "user"]
    return Asked(
        instruction_id(conversation), asked[-1] if asked else "", (conversation.messages[-1]["content"],)
    )


def draw_instructions(conversations: Sequence[Conversation], count: int, seed: int) -> list[Conversation]:
    """``count`` of the conversations, or all if there are fewer, in the order of the draw.

    The seed and each one's id decide, so a larger draw holds a smaller one.

    Raises:
      InputError: if two have the same id.
    """
    places: dict[str, str] = {}
    for each in conversations:
        if each.id in places:
            raise InputError(
                f"{each.place}: the id {each.id!r} is that of {places[each.id]}; give each row its own."
            )
        places[each.id] = each.place
    return sorted(conversations, key=lambda each: hashlib.sha256(f"{seed} {each.id}".encode()).digest())[
        :count
    ]
