"""From answers to a report's figures: each question's scores, each arm's measures, the paired differences.

The scores of a question are what is kept; everything else is derived from them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from jora_tasks.evaluation.answers import abstains, score
from jora_tasks.evaluation.citations import CitedAnswer, Judge, by_words, score_citations, split_citations
from jora_tasks.evaluation.gate import fewest_clusters
from jora_tasks.evaluation.intervals import Estimate, mean_interval, paired_difference
from jora_tasks.evaluation.randomisation import sign_flip_p_value

CLOSED_BOOK = "base_closed_book"
BASE = "base_with_contexts"
ADAPTER = "adapter_with_contexts"
CHAMPION = "champion_with_contexts"
GOLD = "adapter_with_gold_context"
_MOST_VALUES = 50
# A question has only those scores that it can have; the others are null in predictions.parquet.
MEASURES = (
    "exact_match",
    "f1",
    "contains_answer",
    "rouge_l",
    "answer_loss",
    "abstention_precision",
    "abstention_recall",
    "citation_precision",
    "citation_recall",
)


@dataclass(frozen=True)
class Question:
    """A held-out question.

    Attributes:
      group: questions of one group ask for the same fact.
      cluster: questions of one cluster depend on each other.
      slices: what it is told apart by, name → value.
      retrieval: how well its evidence was found, measure → figure; empty where that is unknown.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    group: str
    cluster: str
    slices: Mapping[str, str] = field(default_factory=dict)
    retrieval: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Shown:
    """What a prompt showed beside the question.

    Attributes:
      evidence: labels of the sources with the evidence; None where that is not known, or without sources.
      sources: heading and text of each source, where answers are asked to cite; else None.
    """

    evidence: tuple[int, ...] | None = None
    sources: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Said:
    """An arm's answer, and how well it predicts the known one (nats a token)."""

    text: str
    loss: float | None = None


@dataclass(frozen=True)
class Prediction:
    """What one arm answered to one question, and its scores: a row of predictions.parquet."""

    arm: str
    question: Question
    prediction: str
    abstained: bool
    scores: Mapping[str, float]

    @property
    def right(self) -> bool:
        return self.scores["exact_match"] == 1

    def row(self) -> dict[str, Any]:
        question = self.question
        return {
            "example_id": question.id,
            "group": question.group,
            "cluster": question.cluster,
            "slices": dict(question.slices),
            "arm": self.arm,
            "question": question.text,
            "answers": list(question.answers),
            "prediction": self.prediction,
            "abstained": self.abstained,
            **{measure: self.scores.get(measure) for measure in MEASURES},
            "retrieval": dict(question.retrieval),
        }


@dataclass(frozen=True)
class Resampling:
    """How intervals and p-values are drawn."""

    samples: int
    confidence: float
    seed: int


def score_arm(
    arm: str,
    asked: Iterable[tuple[Question, Shown]],
    said: Mapping[str, Said],
    abstention: str,
    judge: Judge = by_words,
) -> list[Prediction]:
    """Score an arm's answers, in the order of the questions.

    Abstaining is right where no source holds the evidence: its precision is the share of the abstentions
    that are right, its recall the share of the questions without evidence where the arm abstains. So a
    question counts for the first where the arm abstains, and for the second where it has no evidence.

    Args:
      arm: its name.
      asked: the questions, and what their prompts showed.
      said: question id → what the arm answered; joined by id, never by position.
      abstention: how an arm says that the sources do not tell.
      judge: of what supports the answers that cite.
    """
    scored, citing = [], []
    for question, shown in asked:
        answer = said[question.id]
        words, cited = split_citations(answer.text) if shown.sources is not None else (answer.text, ())
        measures = score(words, question.answers)
        scores = asdict(measures)
        if answer.loss is not None:
            scores["answer_loss"] = answer.loss
        abstained = abstains(words, abstention)
        if shown.evidence is not None:
            blind = not shown.evidence
            if abstained:
                scores["abstention_precision"] = float(blind)
            if blind:
                scores["abstention_recall"] = float(abstained)
        if shown.sources is not None and not abstained:
            right, evidence = measures.exact_match == 1, shown.evidence or ()
            answered = CitedAnswer(question.text, words, cited, shown.sources, right, evidence)
            citing.append((scores, answered))
        scored.append(Prediction(arm, question, answer.text, abstained, scores))
    for (scores, answered), supports in zip(citing, judge([each for _, each in citing]), strict=True):
        citations = score_citations(answered.labels, supports)
        scores |= {"citation_precision": citations.precision, "citation_recall": citations.recall}
    return scored


def summarise(rows: Sequence[Prediction], resampling: Resampling) -> dict[str, Any]:
    """One arm: each measure's mean, its ``interval``, and ``of`` how many questions; ``n`` are all."""
    estimates = {}
    for measure in MEASURES:
        known = [row for row in rows if measure in row.scores]
        if known:
            values = [row.scores[measure] for row in known]
            estimates[measure] = mean_interval(values, clusters=_clusters(known), **asdict(resampling))
    return {"n": len(rows), **_figures(estimates)}


def compare(
    rows: Sequence[Prediction], others: Sequence[Prediction], resampling: Resampling
) -> dict[str, Any]:
    """``rows - others`` over the questions that both have a score for.

    Returns:
      ``against`` (the other arm), ``n`` and ``clusters``; by measure the mean difference, its paired
      ``interval``, ``of`` how many questions in how many clusters (``clusters_of``), and ``p``, the
      two-sided p-value of no difference.
    """
    other = {row.question.id: row for row in others}
    pairs = [(row, other[row.question.id]) for row in rows if row.question.id in other]
    estimates, p_values = {}, {}
    for measure in MEASURES:
        # Whom a precision of abstaining is about depends on the arm: there are no pairs.
        known = [pair for pair in pairs if all(measure in row.scores for row in pair)]
        if not known or measure == "abstention_precision":
            continue
        first, second = ([row.scores[measure] for row in side] for side in zip(*known, strict=True))
        clusters = _clusters([row for row, _ in known])
        estimates[measure] = paired_difference(first, second, clusters=clusters, **asdict(resampling))
        p_values[measure] = sign_flip_p_value(
            [a - b for a, b in zip(first, second, strict=True)],
            clusters=clusters,
            samples=resampling.samples,
            seed=resampling.seed,
        )
    return {
        "against": others[0].arm,
        "n": len(pairs),
        "clusters": len({row.question.cluster for row, _ in pairs}),
        **_figures(estimates),
        "clusters_of": {measure: estimate.clusters for measure, estimate in estimates.items()},
        "p": p_values,
    }


def by_slice(rows: Mapping[str, Sequence[Prediction]], resampling: Resampling) -> dict[str, Any]:
    """Slice → value → ``n``, ``clusters``, ``arms`` and ``differences`` of the adapter by opponent.

    Args:
      rows: arm → its predictions. Of a slice with many values, those with the most questions are taken, and
        all with clusters enough for an interval.
    """
    counted: dict[str, Counter[str]] = {}
    for row in rows[ADAPTER]:
        for name, value in row.question.slices.items():
            counted.setdefault(name, Counter())[value] += 1
    report: dict[str, Any] = {}
    for name, values in counted.items():
        report[name] = {}
        for place, (value, _) in enumerate(values.most_common()):
            part = {
                arm: [row for row in each if row.question.slices.get(name) == value]
                for arm, each in rows.items()
            }
            clusters = len(set(_clusters(part[ADAPTER])))
            if place >= _MOST_VALUES and clusters < fewest_clusters(resampling.confidence):
                continue
            opponents = {"base": BASE, "champion": CHAMPION}
            report[name][value] = {
                "n": len(part[ADAPTER]),
                "clusters": clusters,
                "arms": {arm: summarise(each, resampling) for arm, each in part.items() if each},
                "differences": {
                    opponent: compare(part[ADAPTER], part[arm], resampling)
                    for opponent, arm in opponents.items()
                    if part.get(arm)
                },
            }
    return report


def retrieval_measures(questions: Sequence[Question], resampling: Resampling) -> dict[str, Any]:
    """Each measure's mean over the questions that have one, under ``measures``, and its ``interval``."""
    known = [question for question in questions if question.retrieval]
    estimates = {
        name: mean_interval(
            [question.retrieval[name] for question in known],
            clusters=[question.cluster for question in known],
            **asdict(resampling),
        )
        for name in (known[0].retrieval if known else ())
    }
    return {
        "n": len(known),
        "measures": {name: each.mean for name, each in estimates.items()},
        "interval": {name: each.interval for name, each in estimates.items()},
    }


def _clusters(rows: Sequence[Prediction]) -> list[str]:
    return [row.question.cluster for row in rows]


def _figures(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {
        **{measure: estimate.mean for measure, estimate in estimates.items()},
        "interval": {measure: estimate.interval for measure, estimate in estimates.items()},
        "of": {measure: estimate.n for measure, estimate in estimates.items()},
    }
