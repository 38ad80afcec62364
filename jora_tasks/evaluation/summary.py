"""From predictions to a report's figures: each arm's measures and the paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jora_tasks.evaluation.answers import score
from jora_tasks.evaluation.citations import score_citations, split_citations
from jora_tasks.evaluation.intervals import Estimate, mean_interval, paired_difference

CLOSED_BOOK = "base_closed_book"
BASE = "base_with_contexts"
ADAPTER = "adapter_with_contexts"
CHAMPION = "champion_with_contexts"
MEASURES = ("exact_match", "f1")
CITATION_MEASURES = ("citation_precision", "citation_recall")


@dataclass(frozen=True)
class Question:
    """A held-out question. Questions of one group ask for the same fact.

    Attributes:
      supporting: labels of its sources with the evidence, where answers were asked to cite; else None.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    group: str
    supporting: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Prediction:
    """What one arm answered to one question, and how right it is: a row of predictions.parquet.

    Citations have figures where they were asked for and one of the sources holds the evidence.
    """

    example_id: str
    group: str
    arm: str
    question: str
    answers: tuple[str, ...]
    prediction: str
    exact_match: float
    f1: float
    citation_precision: float | None = None
    citation_recall: float | None = None

    def row(self) -> dict[str, Any]:
        return asdict(self) | {"answers": list(self.answers)}


@dataclass(frozen=True)
class Resampling:
    """How intervals are drawn."""

    samples: int
    confidence: float
    seed: int


def score_arm(arm: str, questions: Sequence[Question], answers: Mapping[str, str]) -> list[Prediction]:
    """Score an arm's answers, in the order of the questions.

    Args:
      arm: its name.
      questions: what was asked.
      answers: question id → what the arm answered; joined by id, never by position.
    """
    scored = []
    for question in questions:
        prediction = answers[question.id]
        asked_to_cite = question.supporting is not None
        said, cited = split_citations(prediction) if asked_to_cite else (prediction, ())
        measures = score(said, question.answers)
        citations = None
        if question.supporting and arm != CLOSED_BOOK:
            citations = score_citations(cited, question.supporting)
        scored.append(
            Prediction(
                question.id,
                question.group,
                arm,
                question.text,
                question.answers,
                prediction,
                measures.exact_match,
                measures.f1,
                citations.precision if citations else None,
                citations.recall if citations else None,
            )
        )
    return scored


def summarise(rows: Sequence[Prediction], resampling: Resampling) -> dict[str, Any]:
    """One arm: each measure's mean, the number of questions and the intervals; under ``citations`` the same
    of citations, over the questions where they have figures."""

    def figures(measures: Sequence[str], rows: Sequence[Prediction]) -> dict[str, Any]:
        return _figures(
            {
                measure: mean_interval(
                    [getattr(row, measure) for row in rows], clusters=_groups(rows), **asdict(resampling)
                )
                for measure in measures
            }
        )

    citing = [row for row in rows if row.citation_recall is not None]
    found = figures(MEASURES, rows)
    return found | {"citations": figures(CITATION_MEASURES, citing)} if citing else found


def compare(
    rows: Sequence[Prediction], others: Sequence[Prediction], resampling: Resampling
) -> dict[str, Any]:
    """``rows - others`` over the same questions: each measure's difference and its paired interval."""
    estimates = {
        measure: paired_difference(
            [getattr(row, measure) for row in rows],
            [getattr(row, measure) for row in others],
            clusters=_groups(rows),
            **asdict(resampling),
        )
        for measure in MEASURES
    }
    return {"against": others[0].arm, **_figures(estimates)}


def _groups(rows: Sequence[Prediction]) -> list[str]:
    return [row.group for row in rows]


def _figures(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {
        **{measure: estimate.mean for measure, estimate in estimates.items()},
        "n": next(iter(estimates.values())).n,
        "interval": {measure: estimate.interval for measure, estimate in estimates.items()},
    }
