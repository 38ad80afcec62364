"""The report as one HTML page that needs nothing else: no script, no font, no address."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_tasks.evaluation import charts
from jora_tasks.evaluation.page import render_page
from jora_tasks.evaluation.summary import ADAPTER, BASE, CHAMPION, CLOSED_BOOK, GOLD, Prediction
from jora_tasks.spec import LOWER_IS_BETTER

NAMES = {
    CLOSED_BOOK: "Base, closed book",
    BASE: "Base + contexts",
    ADAPTER: "Adapter + contexts",
    CHAMPION: "Champion + contexts",
    GOLD: "Adapter + gold context",
}
_STYLES = {
    CLOSED_BOOK: "faint",
    BASE: "base",
    ADAPTER: "adapter",
    CHAMPION: "champion",
    GOLD: "gold",
}
# Measure → its name and what it says.
WORDS = {
    "exact_match": ("Exact match", "the answer is a known one, but for case, punctuation and articles"),
    "f1": ("Token F1", "words shared with a known answer"),
    "contains_answer": ("Contains answer", "a known answer's words stand in it in a row"),
    "rouge_l": ("ROUGE-L", "longest common subsequence of words with a known answer, as F1"),
    "answer_loss": (
        "Answer loss",
        "mean negative log-likelihood of the first known answer, nats a token; lower is better",
    ),
    "abstention_precision": (
        "Abstention precision",
        "of the abstentions, those where no source held the evidence",
    ),
    "abstention_recall": (
        "Abstention recall",
        "of the questions whose sources lack the evidence, those abstained from",
    ),
    "citation_precision": ("Citation precision", "of the sources cited, those that support the answer"),
    "citation_recall": ("Citation recall", "answers whose citations support them"),
}
_DRAWN = ("exact_match", "f1", "contains_answer", "rouge_l")
# The page shows this many examples of each sort; predictions.parquet has all.
_EXAMPLES = 8


@dataclass(frozen=True)
class Example:
    """One question with every arm's answer: arm's name → (answer, right)."""

    question: str
    answers: tuple[str, ...]
    predictions: Mapping[str, tuple[str, bool]]
    note: str = ""


def render_report(
    report: Mapping[str, Any],
    rows: Mapping[str, Sequence[Prediction]],
    *,
    history: Sequence[Mapping[str, Any]] = (),
    lengths: Sequence[int] = (),
    prompt_lengths: Mapping[str, int] | None = None,
) -> str:
    """The page.

    Args:
      report: as in report.json.
      rows: arm → its predictions; a question's answers are joined by its id.
      history: rows of metrics.jsonl: ``step``, ``loss``, ``learning_rate`` and, in some, ``eval_loss``.
      lengths: tokens of each training example.
      prompt_lengths: question id → tokens of its prompt with contexts.
    """
    return render_page(
        "report.html.j2",
        report=report,
        names=NAMES,
        words=WORDS,
        arms=list(rows),
        confidence=f"{report['confidence']:.0%}",
        bars={measure: _arm_bars(report, measure) for measure in _DRAWN},
        measures=[measure for measure in WORDS if any(measure in each for each in report["arms"].values())],
        differences=_differences(report),
        calibration=_calibration(report["retrieval"].get("calibration") or []),
        loss=_curve(history, "loss", "Training loss", "loss"),
        evaluation_loss=_curve(history, "eval_loss", "Loss on the dev questions", "loss"),
        learning_rate=_curve(history, "learning_rate", "Learning rate", "rate"),
        lengths=charts.histogram(lengths, "Lengths of training examples", x_label="tokens"),
        examples=_examples(rows) | _extremes(rows, prompt_lengths or {}),
        most_examples=_EXAMPLES,
    )


def read_history(file: Path) -> list[dict[str, Any]]:
    """The steps of a metrics.jsonl; empty if there is no such file."""
    if not file.is_file():
        return []
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [row for row in rows if "step" in row]


def read_lengths(file: Path) -> list[int]:
    """Tokens of each training example of a prompts.parquet."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(file, columns=["input_ids"], filters=[("split", "=", "train")])
    return pc.list_value_length(table["input_ids"]).to_pylist()


def _arm_bars(report: Mapping[str, Any], measure: str) -> Any:
    return charts.bars(
        [
            charts.Bar(NAMES[arm], figures[measure], low, high, _STYLES[arm])
            for arm, figures in report["arms"].items()
            if measure in figures
            for low, high in [figures["interval"][measure]]
        ],
        f"{WORDS[measure][0]} by arm",
    )


def _differences(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each opponent: the chart of exact match, and a line a measure with its figures and how it looks."""
    compared = [("base + contexts", report["difference"])]
    champion = report["champion"]
    if champion and champion["difference"]:
        compared.append((f"champion, version {champion['version']}", champion["difference"]))
    shown = []
    for against, difference in compared:
        low, high = difference["interval"]["exact_match"]
        title = f"Exact match: adapter minus {against}"
        bar = charts.Bar(title, difference["exact_match"], low, high, _style("exact_match", low, high))
        lines = [
            {
                "measure": measure,
                "figures": f"{difference[measure]:+.3f}  [{low:+.3f}, {high:+.3f}]",
                "style": _style(measure, low, high),
                "p": difference["p"][measure],
                "n": difference["of"][measure],
            }
            for measure, (low, high) in difference["interval"].items()
        ]
        shown.append({"against": against, "chart": charts.interval(bar, title), "lines": lines})
    return shown


def _style(measure: str, low: float, high: float) -> str:
    """Whether an interval is on the better side of 0, on the worse one or on both."""
    if measure in LOWER_IS_BETTER:
        low, high = -high, -low
    return "better" if low > 0 else "worse" if high < 0 else "open"


def _calibration(bins: Sequence[Mapping[str, Any]]) -> Any:
    if not bins:
        return ""
    return charts.bars(
        [
            charts.Bar(f"{each['low']:.3f} to {each['high']:.3f}", each["relevant"], low, high, "count")
            for each in bins
            for low, high in [each["interval"]]
        ],
        "Share of chunks with evidence by retrieval score",
    )


def _curve(history: Sequence[Mapping[str, Any]], figure: str, title: str, style: str) -> Any:
    steps = [row for row in history if isinstance(row.get(figure), int | float)]
    if not steps:
        return ""
    return charts.lines(
        [row["step"] for row in steps],
        [float(row[figure]) for row in steps],
        title,
        x_label="step",
        style=style,
        height=150 if figure == "learning_rate" else 220,
    )


def _examples(rows: Mapping[str, Sequence[Prediction]]) -> dict[str, list[Example]]:
    """Heading → examples, told apart by who was right: the adapter and the base with contexts."""
    sorts: dict[str, list[Example]] = {
        "Only the adapter is right": [],
        "Only the base is right": [],
        "Neither is right": [],
        "Both are right": [],
    }
    heading = dict(zip([(True, False), (False, True), (False, False), (True, True)], sorts, strict=True))
    found = _by_question(rows)
    for row in rows[ADAPTER]:
        right = (row.right, found[BASE][row.question.id].right)
        sorts[heading[right]].append(_example(row, found))
    return sorts


def _extremes(
    rows: Mapping[str, Sequence[Prediction]], prompt_lengths: Mapping[str, int]
) -> dict[str, list[Example]]:
    """The questions that the adapter likes least to answer right, and those with the longest prompts."""
    found = _by_question(rows)
    lost = [row for row in rows[ADAPTER] if "answer_loss" in row.scores]
    worst = sorted(lost, key=lambda row: -row.scores["answer_loss"])[:_EXAMPLES]
    known = [row for row in rows[ADAPTER] if row.question.id in prompt_lengths]
    longest = sorted(known, key=lambda row: -prompt_lengths[row.question.id])[:_EXAMPLES]
    return {
        "Worst: highest answer loss of the adapter": [
            _example(row, found, f"loss {row.scores['answer_loss']:.3f}") for row in worst
        ],
        "Longest prompts": [
            _example(row, found, f"{prompt_lengths[row.question.id]:,} tokens") for row in longest
        ],
    }


def _by_question(rows: Mapping[str, Sequence[Prediction]]) -> dict[str, dict[str, Prediction]]:
    return {arm: {row.question.id: row for row in each} for arm, each in rows.items()}


def _example(row: Prediction, found: Mapping[str, Mapping[str, Prediction]], note: str = "") -> Example:
    question = row.question
    predictions = {
        arm: (each[question.id].prediction, each[question.id].right)
        for arm, each in found.items()
        if question.id in each
    }
    return Example(question.text, question.answers, predictions, note)
