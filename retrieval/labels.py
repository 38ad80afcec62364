"""Questions and where their evidence stands in the documents as they are now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jora_tasks.errors import InputError
from retrieval.evidence import Evidence, Span, resolve
from retrieval.questions import Question

MissingEvidence = Literal["keep", "drop", "error"]


@dataclass(frozen=True)
class Missing:
    """A piece of evidence that the documents no longer hold."""

    question_id: str
    evidence: Evidence


def with_evidence(
    questions: Sequence[Question], texts: Mapping[str, str], policy: MissingEvidence
) -> tuple[list[tuple[Question, list[Span]]], list[Missing]]:
    """Each question with the spans of its evidence, and the evidence that is gone.

    Args:
      questions: with their splits.
      texts: document id → text.
      policy: what becomes of a question with evidence that is gone: it is kept with the rest of it,
        left out, or an error.

    Raises:
      InputError: naming the first such question and how many there are, where that is asked for; or
        where leaving them out leaves no question to train on, or none to test.
    """
    found: list[tuple[Question, list[Span]]] = []
    missing: list[Missing] = []
    for question in questions:
        spans = [resolve(evidence, texts) for evidence in question.evidence]
        gone = [each for each, span in zip(question.evidence, spans, strict=True) if span is None]
        missing += [Missing(question.id, evidence) for evidence in gone]
        if not gone or policy == "keep":
            found.append((question, [span for span in spans if span is not None]))
    if not missing:
        return found, missing
    stale = len({each.question_id for each in missing})
    if policy == "error":
        question = next(each for each in questions if each.id == missing[0].question_id)
        raise InputError(
            f"{question.place or question.id}: its evidence is no longer in "
            f"{missing[0].evidence.document_id}, and so with {stale - 1} other questions; mend them, "
            "or set questions.missing_evidence to keep or drop."
        )
    left = {question.split for question, _ in found}
    if lost := sorted({question.split for question in questions} & {"train", "test"} - left):
        raise InputError(
            f"questions.missing_evidence: drop leaves no {lost[0]} question, since {stale} have evidence "
            "that the documents no longer hold; mend them, or set it to keep."
        )
    return found, missing
