"""Training examples: token ids, and which of them are scored.

Nothing is cut, and nothing is left out in silence: an example that cannot be used is an error that names
it, or, if it is too long and that is asked for, listed in `Dataset.skipped`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from jora_tasks.errors import InputError
from jora_tasks.reading import parse_rows, read_text

LongExamples = Literal["error", "skip"]

FORMATS = (
    "{instruction, input, output}, {question, answers} or {messages}, as a JSON list or one object a line"
)


@dataclass(frozen=True, eq=False)
class Example:
    """One conversation.

    Attributes:
      input_ids: int32 [length], the answer and its end-of-turn token included.
      scored: bool [length], true where the token is to be learned.
    """

    id: str
    input_ids: Int[np.ndarray, " length"]
    scored: Bool[np.ndarray, " length"]

    @classmethod
    def make(
        cls,
        id: str,
        input_ids: Iterable[int],
        *,
        prompt_length: int | None = None,
        scored: Iterable[bool] | None = None,
    ) -> Example:
        """Check and build an example; give ``prompt_length`` (all after it is scored) or ``scored``.

        Raises:
          InputError: naming the example, if no token is scored, the first one is (nothing predicts
            it) or the mask has another length.
        """
        ids = np.asarray(list(input_ids), np.int32)
        if scored is None:
            mask = np.arange(len(ids)) >= (len(ids) if prompt_length is None else prompt_length)
        else:
            mask = np.asarray(list(scored), bool)
        if len(mask) != len(ids):
            raise InputError(
                f"example {id}: {len(mask)} scored marks for {len(ids)} tokens; give one for each token."
            )
        if not mask.any():
            raise InputError(
                f"example {id} has no scored token in its {len(ids)}; give it an answer or remove it."
            )
        if mask[0]:
            raise InputError(
                f"example {id} scores its first token, which nothing predicts; put a prompt before it."
            )
        return cls(str(id), ids, mask)


@dataclass(frozen=True)
class Skipped:
    """An example that was left out for its length in tokens."""

    id: str
    tokens: int


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples with unique ids, and those left out for their length.

    Raises:
      InputError: if there is none, or two have the same id.
    """

    examples: tuple[Example, ...]
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self) -> None:
        if not self.examples:
            raise InputError("the dataset has no examples; give at least one.")
        seen: set[str] = set()
        for example in self.examples:
            if example.id in seen:
                raise InputError(f"example {example.id} appears twice; give each example its own id.")
            seen.add(example.id)

    def within(self, most: int, long_examples: LongExamples = "error", limit: str = "max_length") -> Dataset:
        """The dataset without the examples of more than ``most`` tokens, if leaving out is asked for.

        Args:
          long_examples: what to do where there are some: ``error``, or ``skip`` to list them in ``skipped``.
          limit: what an error calls the limit.

        Raises:
          InputError: naming the longest example, if there are longer ones and they may not be left out, or
            if none would be left.
        """
        longer = [example for example in self.examples if len(example.input_ids) > most]
        if not longer:
            return self
        if long_examples == "error" or len(longer) == len(self.examples):
            tokens, id_ = max((len(example.input_ids), example.id) for example in longer)
            others = f" and {len(longer) - 1:,} more are too long" if len(longer) > 1 else ""
            skip = ", or let long_examples: skip leave it out" if len(longer) < len(self.examples) else ""
            raise InputError(
                f"example {id_} has {tokens:,} tokens, but {limit} is {most:,}{others}; "
                f"shorten what is longer{skip}."
            )
        kept = tuple(example for example in self.examples if len(example.input_ids) <= most)
        return Dataset(kept, self.skipped + tuple(Skipped(each.id, len(each.input_ids)) for each in longer))

    @classmethod
    def from_prompts(cls, path: str | Path, split: str = "train") -> Dataset:
        """The examples of one split of a prompts artifact's ``prompts.parquet``.

        Raises:
          InputError: if the file or split is missing or an example cannot be used.
        """
        import pyarrow.parquet as pq

        columns = ["example_id", "split", "input_ids", "prompt_length"]
        try:
            table = pq.read_table(path, columns=columns)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{path}: {' '.join(str(error).split())}; give a prompts.parquet that `jora prompts` wrote."
            ) from None
        rows = [row for row in table.to_pylist() if row["split"] == split]
        if not rows:
            raise InputError(f"{path}: no example of split {split!r}; add questions of that split.")
        return cls(
            tuple(
                Example.make(row["example_id"], row["input_ids"], prompt_length=row["prompt_length"])
                for row in rows
            )
        )

    @cached_property
    def tokens(self) -> int:
        """Tokens in all, padding not counted."""
        return int(self.lengths.sum())

    @cached_property
    def lengths(self) -> Int[np.ndarray, " N"]:
        """Tokens of each example."""
        return np.array([len(example.input_ids) for example in self.examples])

    @cached_property
    def scored_counts(self) -> Int[np.ndarray, " N"]:
        """Scored tokens of each example."""
        return np.array([np.count_nonzero(example.scored) for example in self.examples])

    @cached_property
    def digest(self) -> str:
        """``sha256:<hex>`` over the ids, tokens and marks, in order."""
        sha = hashlib.sha256()
        for example in self.examples:
            name = example.id.encode()
            sha.update(f"{len(name)} {len(example.input_ids)} ".encode())
            sha.update(name)
            sha.update(example.input_ids.astype("<i4").tobytes())
            sha.update(example.scored.tobytes())
        return f"sha256:{sha.hexdigest()}"


def load_dataset(
    path: str | Path,
    model: str | Path,
    *,
    max_length: int | None = None,
    long_examples: LongExamples = "error",
) -> Dataset:
    """Read conversations and turn them into tokens with the model's own chat template.

    Args:
      path: see `read_conversations`.
      model: Hugging Face folder whose tokenizer and chat template are used.
      max_length: tokens allowed in an example; none is ever cut.
      long_examples: longer ones are an ``error`` that names the longest, or with ``skip`` left out and
        listed in the dataset's ``skipped``.

    Raises:
      InputError: naming file and line (in a JSON list, the item).
    """
    from jora_tasks.trainer.tokenizer import load_tokenizer

    conversations = read_conversations(path)
    tokenizer = load_tokenizer(Path(model))
    examples, places = [], {}
    for conversation in conversations:
        try:
            input_ids, prompt_length = tokenizer.render(conversation.messages)
            example = Example.make(conversation.id, input_ids, prompt_length=prompt_length)
        except InputError as error:
            raise InputError(f"{conversation.place}: {error}") from None
        examples.append(example)
        places[example.id] = conversation.place
    dataset = Dataset(tuple(examples))
    if max_length is None:
        return dataset
    _, longest = max((len(example.input_ids), example.id) for example in examples)
    try:
        return dataset.within(max_length, long_examples)
    except InputError as error:
        raise InputError(f"{places[longest]}: {error}") from None


@dataclass(frozen=True)
class Conversation:
    """Messages that end with the assistant's; ``place`` is file and line, for errors."""

    id: str
    messages: list[dict[str, str]]
    place: str


def read_conversations(path: str | Path) -> list[Conversation]:
    """Read conversations to learn from.

    Each record is Alpaca (``instruction``, optional ``input``, ``output``), a question
    (``question``, ``answers`` or ``answer``; the first answer is learned) or chat (``messages``,
    the last one the assistant's; only that one is scored). ``id`` is optional; by default the
    record's number, from 1.

    Args:
      path: a JSON list, or JSONL.

    Raises:
      InputError: naming file and line (in a JSON list, the item), or a file without records.
    """
    found = [
        Conversation(
            str(number if record.get("id") is None else record["id"]), _messages(record, where), where
        )
        for number, (where, record) in enumerate(_records(Path(path)), 1)
    ]
    if not found:
        raise InputError(f"{path} has no records; give {FORMATS}.")
    return found


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for item, where in parse_rows(read_text(path), path):
        if not isinstance(item, dict):
            raise InputError(f"{where}: a {type(item).__name__}, not an object; give {FORMATS}.")
        yield where, item


def _messages(record: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    """The record as chat messages, whatever its format."""
    if "messages" in record:
        messages = record["messages"]
        if not isinstance(messages, list) or not all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in messages
        ):
            raise InputError(f"{where}: messages must be a list of objects with role and content as text.")
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise InputError(f"{where}: messages must end with an assistant's, after at least one other.")
        return [{"role": message["role"], "content": message["content"]} for message in messages]
    if "instruction" in record:
        instruction, answer = _text(record, "instruction", where), _text(record, "output", where)
        context = _text(record, "input", where) if record.get("input") else ""
        question = f"{instruction}\n\n{context}" if context else instruction
    elif "question" in record:
        question = _text(record, "question", where)
        answers = record.get("answers", [record.get("answer")])
        if not isinstance(answers, list) or not answers:
            raise InputError(f"{where}: answers must be a list with at least one text.")
        answer = _text({"answer": answers[0]}, "answer", where)
    else:
        raise InputError(f"{where}: fields {', '.join(sorted(record)) or '(none)'}; give {FORMATS}.")
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _text(record: Mapping[str, Any], field: str, where: str) -> str:
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        found = "is not text" if value and not isinstance(value, str) else "is missing or empty"
        raise InputError(f"{where}: {field} {found}; give it as text.")
    return value
