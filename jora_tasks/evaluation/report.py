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

NAMES = {
    CLOSED_BOOK: "Base, closed book",
    BASE: "Base + contexts",
    ADAPTER: "Adapter + contexts",
    CHAMPION: "Champion + contexts",
    GOLD: "Adapter + gold context",
}
_STYLES = {CLOSED_BOOK: "faint", BASE: "base", ADAPTER: "adapter", CHAMPION: "champion", GOLD: "gold"}
# The page shows this many examples of each sort; predictions.parquet has all.
_EXAMPLES = 8


@dataclass(frozen=True)
class Example:
    """One question with every arm's answer: arm's name → (answer, right)."""

    question: str
    answers: tuple[str, ...]
    predictions: Mapping[str, tuple[str, bool]]


def render_report(
    report: Mapping[str, Any],
    rows: Mapping[str, Sequence[Prediction]],
    *,
    history: Sequence[Mapping[str, Any]] = (),
    lengths: Sequence[int] = (),
) -> str:
    """The page.

    Args:
      report: as in report.json.
      rows: arm → its predictions, every arm's in the same order of questions.
      history: rows of metrics.jsonl: ``step``, ``loss``, ``learning_rate`` and, in some, ``eval_loss``.
      lengths: tokens of each training example.
    """
    return render_page(
        "report.html.j2",
        report=report,
        names=NAMES,
        arms=list(rows),
        confidence=f"{report['confidence']:.0%}",
        charts={
            "exact_match": _arm_bars(report, "exact_match", "Exact match by arm"),
            "f1": _arm_bars(report, "f1", "Token F1 by arm"),
        },
        differences=_differences(report),
        retrieval=_retrieval_measures(report["retrieval"]),
        loss=_curve(history, "loss", "Training loss", "loss"),
        evaluation_loss=_curve(history, "eval_loss", "Loss on the dev questions", "loss"),
        learning_rate=_curve(history, "learning_rate", "Learning rate", "rate"),
        lengths=charts.histogram(lengths, "Lengths of training examples", x_label="tokens"),
        examples=_examples(rows),
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


def _arm_bars(report: Mapping[str, Any], measure: str, title: str) -> Any:
    return charts.bars(
        [
            charts.Bar(NAMES[arm], figures[measure], low, high, _STYLES[arm])
            for arm, figures in report["arms"].items()
            for low, high in [figures["interval"][measure]]
        ],
        title,
    )


def _differences(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each comparison's words, figures and chart."""
    compared = [("base", report["difference"])]
    champion = report["champion"]
    if champion and champion["difference"]:
        compared.append((f"champion, version {champion['version']}", champion["difference"]))
    shown = []
    for against, difference in compared:
        low, high = difference["interval"]["exact_match"]
        style = "better" if low > 0 else "worse" if high < 0 else "open"
        title = f"Exact match: adapter minus {against}"
        bar = charts.Bar(title, difference["exact_match"], low, high, style)
        shown.append(
            {
                "title": title,
                "figures": f"{difference['exact_match']:+.3f}  [{low:+.3f}, {high:+.3f}]",
                "style": style,
                "chart": charts.interval(bar, title),
            }
        )
    return shown


def _retrieval_measures(retrieval: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(name, mean over the test questions with evidence) of each measure; in older reports of recall."""
    recall = retrieval["recall_at_k"] or {}
    measures = retrieval.get("measures") or {f"recall@{k}": value for k, value in recall.items()}
    return list(measures.items())


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
    found = {arm: {row.question.id: row for row in each} for arm, each in rows.items()}
    for row in rows[ADAPTER]:
        question = row.question
        right = (row.right, found[BASE][question.id].right)
        predictions = {
            arm: (each[question.id].prediction, each[question.id].right)
            for arm, each in found.items()
            if question.id in each
        }
        sorts[heading[right]].append(Example(question.text, question.answers, predictions))
    return sorts
