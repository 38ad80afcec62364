"""Questions with known answers, from JSONL or Alpaca JSON, split so that no fact is in two splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jora_tasks.errors import InputError
from jora_tasks.reading import parse_rows, read_text
from retrieval.documents import normalise
from retrieval.evidence import Evidence

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
      id: as given, or a hash of question and answers.
      answers: those that count as right; the first is the one learned.
      split: train, dev or test; empty until assigned.
      group: questions of one group are never in different splits.
      evidence: where the answer stands, if known.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    split: str
    group: str
    evidence: tuple[Evidence, ...] = ()


def load_questions(path: Path, dev_fraction: float, test_fraction: float) -> list[Question]:
    """Read questions and give each a split, in the file's order.

    A group goes to the split that one of its rows names, and otherwise by a hash of its name: to
    test with probability ``test_fraction``, to dev with ``dev_fraction``, else to train. So a
    question keeps its split when others come and go.

    Raises:
      InputError: for a missing, empty or malformed file, a question without answer, an id given
        twice, or a group in two splits; the file and line are named.
    """
    found: list[Question] = []
    places: dict[str, str] = {}
    text = normalise(read_text(path, f"questions.path {path}"))
    for row, place in parse_rows(text, path):
        question = _question(row, place)
        if question.id in places:
            raise InputError(
                f"{place} has the id {question.id!r} of {places[question.id]}, or repeats its question and "
                "answers; remove one or give each its own id."
            )
        places[question.id] = place
        found.append(question)
    if not found:
        raise InputError(f"questions.path {path} holds no question; give at least one with its answer.")
    named = _named_splits(found, places)
    return [
        replace(
            question,
            split=named.get(question.group) or assign_split(question.group, dev_fraction, test_fraction),
        )
        for question in found
    ]


def check_splits(questions: Iterable[Question], path: Path) -> None:
    """Refuse questions that nothing can be learned from, or measured on.

    Raises:
      InputError: without a question of train, or of test.
    """
    splits = {question.split for question in questions}
    for split, remedy in (
        ("train", "lower questions.dev_fraction and questions.test_fraction"),
        ("test", "raise questions.test_fraction"),
    ):
        if split not in splits:
            raise InputError(
                f'questions.path {path} has no {split} question; give rows "split": "{split}" or, where no '
                f"row names a split, {remedy} or give questions of more groups."
            )


def assign_split(group: str, dev_fraction: float, test_fraction: float) -> str:
    """The split of a group, decided by its name alone."""
    draw = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    if draw < test_fraction:
        return "test"
    return "dev" if draw < test_fraction + dev_fraction else "train"


def _named_splits(questions: Iterable[Question], places: dict[str, str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for question in questions:
        if question.split and named.setdefault(question.group, question.split) != question.split:
            raise InputError(
                f"{places[question.id]}: group {question.group!r} is in {named[question.group]} and in "
                f"{question.split}; put all questions of a group in one split."
            )
    return named


def _question(row: Any, place: str) -> Question:
    if not isinstance(row, dict):
        raise InputError(f"{place} must be a JSON object with question and answers.")
    if "instruction" in row:
        parts = [row[key] for key in ("instruction", "input") if row.get(key) is not None]
        if not all(isinstance(part, str) for part in parts):
            raise InputError(f"{place}: instruction and input must be text.")
        text: Any = "\n\n".join(filter(None, map(str.strip, parts)))
        answers: Any = row.get("output")
    else:
        text, answers = row.get("question"), row.get("answers", row.get("answer"))
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{place} has no question; give it as text in question (or instruction).")
    listed = [answers] if isinstance(answers, str) else answers
    if not isinstance(listed, list) or not all(isinstance(answer, str) for answer in listed):
        raise InputError(f"{place} must have answers as a list of texts, or one text in answer or output.")
    listed = [normalise(answer).strip() for answer in listed if answer.strip()]
    if not listed:
        raise InputError(f"{place} has no answer; give at least one that is not empty.")
    text = normalise(text).strip()
    split = "" if row.get("split") is None else row["split"]
    if split not in ("", *SPLITS):
        raise InputError(f"{place}: split {split!r} must be train, dev or test, or left out.")
    content = json.dumps([text, *listed], ensure_ascii=False)
    id_ = _optional_text(row, "id", place) or hashlib.sha256(content.encode()).hexdigest()[:16]
    group = _optional_text(row, "group", place) or id_
    return Question(id_, text, tuple(listed), split, group, _evidence(row.get("evidence"), place))


def _optional_text(row: dict[str, Any], field: str, place: str) -> str:
    value = row.get(field)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise InputError(f"{place}: {field} must be text or a whole number, or left out.")
    return str(value)


def _evidence(value: Any, place: str) -> tuple[Evidence, ...]:
    if value is None:
        return ()
    form = '{"document_id": "…", "text": "…"} or {"document_id": "…", "start": 0, "end": 9}'
    if not isinstance(value, list):
        raise InputError(f"{place}: evidence must be a list of {form}.")
    found = []
    for each in value:
        each = each if isinstance(each, dict) else {}
        document_id, text = each.get("document_id"), each.get("text")
        start, end = each.get("start"), each.get("end")
        spans = type(start) is int and type(end) is int and 0 <= start < end
        no_span = start is None and end is None
        if (
            not isinstance(document_id, str)
            or not (spans or no_span)
            or not ((isinstance(text, str) and text) or (text is None and spans))
        ):
            raise InputError(f"{place}: evidence must be a list of {form}.")
        found.append(Evidence(document_id, normalise(text) if text else None, start, end))
    return tuple(found)
