"""What a model is asked for a chunk, how its reply is read, and which drafts are refused.

The closed-book check keeps what needs the documents: a question that the model answers by itself
teaches and measures nothing about retrieval.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jora_tasks.characters import control_in, is_blank
from retrieval.answers import find_answer

if TYPE_CHECKING:
    from jora_tasks.trainer.tokenizer import Message
    from retrieval.chunking import Chunk

INSTRUCTION = (
    "Write one question that the text answers and that makes sense to someone who does not see the text. "
    "Give the answer in the words of the text, as short as possible. Reply with two lines:\n"
    "Question: ...\nAnswer: ..."
)
# Small models keep to the two lines only when they have seen them once.
_EXAMPLE: list[Message] = [
    {
        "role": "user",
        "content": "Text (Canteen › Hours):\n\nThe canteen of the northern building opens at 11:30 on "
        "weekdays. Guests pay in cash.",
    },
    {
        "role": "assistant",
        "content": "Question: When does the canteen of the northern building open?\nAnswer: 11:30",
    },
]
CLOSED_BOOK = "Answer the question. Reply with the answer alone, as short as possible."

# Why there is no question of a chunk.
KEPT = "kept"
NO_DRAFT = "no question and answer in the reply"
CONTROL = "control characters"
NOT_IN_CHUNK = "answer not in the chunk"
IN_QUESTION = "answer in the question"
WITHOUT_CHUNK = "answered without the chunk"
DUPLICATE = "duplicate"

_LONGEST = 1000  # characters of a question or answer
_WRAPPING = " \t\"'`*"
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+|\n")


@dataclass(frozen=True)
class Draft:
    """A question and its answer, as a model proposed them."""

    question: str
    answer: str


def draft_messages(chunk: Chunk) -> list[Message]:
    """What a model is told to draft a question from a chunk."""
    return [
        {"role": "system", "content": INSTRUCTION},
        *_EXAMPLE,
        {"role": "user", "content": f"Text ({chunk.heading}):\n\n{chunk.text}"},
    ]


def closed_book_messages(question: str) -> list[Message]:
    """The question alone."""
    return [{"role": "system", "content": CLOSED_BOOK}, {"role": "user", "content": f"Question: {question}"}]


def parse_reply(reply: str) -> Draft | None:
    """The draft of a reply: lines that begin with Question and Answer, or a JSON object; None if it has none.

    >>> parse_reply("Sure!\\n**Question:** How long?\\n**Answer:** 30 days.")
    Draft(question='How long?', answer='30 days')
    """
    question, answer = _of_json(reply) or (_line("question", reply), _line("answer", reply))
    answer = answer.strip(_WRAPPING).rstrip(".").strip(_WRAPPING)
    question = question.strip(_WRAPPING)
    if is_blank(question) or is_blank(answer) or max(len(question), len(answer)) > _LONGEST:
        return None
    return Draft(question, answer)


def refusal(draft: Draft, chunk: Chunk, asked: set[str]) -> str | None:
    """Why a draft is refused before anyone is asked again, None if it is not.

    Args:
      asked: `same_question` of the questions that there are already.
    """
    if control_in(draft.question) or control_in(draft.answer):
        return CONTROL
    if find_answer(chunk.text, draft.answer) is None:
        return NOT_IN_CHUNK
    if find_answer(draft.question, draft.answer) is not None:
        return IN_QUESTION
    return DUPLICATE if same_question(draft.question) in asked else None


def answered_without(reply: str, draft: Draft) -> bool:
    """Whether a reply to the question alone has the answer."""
    return find_answer(reply, draft.answer) is not None


def same_question(question: str) -> str:
    """What two questions have in common that differ in case, punctuation and space alone."""
    return " ".join(re.findall(r"\w+", question.casefold()))


def question_row(draft: Draft, chunk: Chunk) -> dict[str, Any]:
    """A row of a questions file: the answer in the text's own words, the sentence around it as evidence.

    The group is the document, so that a split by group never has a document in two splits.
    """
    start, end = find_answer(chunk.text, draft.answer) or (0, len(chunk.text))
    answer = " ".join(chunk.text[start:end].split())
    ends = [found.end() for found in _SENTENCE_ENDS.finditer(chunk.text)]
    first = max((position for position in ends if position <= start), default=0)
    last = min((position for position in ends if position >= end), default=len(chunk.text))
    sentence = chunk.text[first:last]
    first += len(sentence) - len(sentence.lstrip())
    last = first + len(sentence.strip())
    identity = json.dumps([chunk.document_id, draft.question, answer], ensure_ascii=False)
    return {
        "id": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "question": draft.question,
        "answers": [answer],
        "group": chunk.document_id,
        "evidence": [
            {
                "document_id": chunk.document_id,
                "start": chunk.start + first,
                "end": chunk.start + last,
                "text": chunk.text[first:last],
            }
        ],
    }


def _line(name: str, reply: str) -> str:
    found = re.search(rf"^[\W\d]*{name}[^\w\n]*:[^\S\n]*(\S.*)$", reply, re.IGNORECASE | re.MULTILINE)
    return found[1] if found else ""


def _of_json(reply: str) -> tuple[str, str] | None:
    start, end = reply.find("{"), reply.rfind("}")
    if start < 0 or end < start:
        return None
    try:
        value = json.loads(reply[start : end + 1])
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    question, answer = value.get("question"), value.get("answer")
    return (question, answer) if isinstance(question, str) and isinstance(answer, str) else None
