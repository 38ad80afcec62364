"""Questions with known answers, from JSONL or Alpaca JSON."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jora_tasks.characters import control_in, is_blank
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
      place: file and line, for errors.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    split: str
    group: str
    evidence: tuple[Evidence, ...] = ()
    place: str = field(default="", compare=False)


def read_questions(path: Path, group_field: str = "group") -> list[Question]:
    """Read questions, in the file's order; `retrieval.splits` gives splits to those that name none.

    Args:
      path: JSONL, or a JSON list.
      group_field: the field of a row that holds its group.

    Raises:
      InputError: for a missing, empty or malformed file, a question without answer, or an id given
        twice; the file and line are named.
    """
    found: list[Question] = []
    places: dict[str, str] = {}
    text = normalise(read_text(path, f"questions.path {path}"))
    for row, place in parse_rows(text, path):
        question = _question(row, place, group_field)
        if question.id in places:
            raise InputError(
                f"{place} has the id {question.id!r} of {places[question.id]}, or repeats its question and "
                "answers; remove one or give each its own id."
            )
        places[question.id] = place
        found.append(question)
    if not found:
        raise InputError(f"questions.path {path} holds no question; give at least one with its answer.")
    return found


def _question(row: Any, place: str, group_field: str) -> Question:
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
    if not isinstance(text, str) or is_blank(text):
        raise InputError(f"{place} has no question; give it as text in question (or instruction).")
    listed = [answers] if isinstance(answers, str) else answers
    if not isinstance(listed, list) or not all(isinstance(answer, str) for answer in listed):
        raise InputError(f"{place} must have answers as a list of texts, or one text in answer or output.")
    listed = [normalise(answer).strip() for answer in listed if not is_blank(answer)]
    if not listed:
        raise InputError(f"{place} has no answer; give at least one that is not empty.")
    text = normalise(text).strip()
    if found := next(filter(None, map(control_in, (text, *listed))), None):
        raise InputError(
            f"{place} has a control character, {found}, in its question or an answer; remove it."
        )
    split = "" if row.get("split") is None else row["split"]
    if split not in ("", *SPLITS):
        raise InputError(f"{place}: split {split!r} must be train, dev or test, or left out.")
    content = json.dumps([text, *listed], ensure_ascii=False)
    id_ = _optional_text(row, "id", place) or hashlib.sha256(content.encode()).hexdigest()[:16]
    group = _optional_text(row, group_field, place) or id_
    return Question(id_, text, tuple(listed), split, group, _evidence(row.get("evidence"), place), place)


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
        found.append(Evidence(normalise(document_id), normalise(text) if text else None, start, end))
    return tuple(found)
