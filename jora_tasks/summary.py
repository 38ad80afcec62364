"""What a run came to: a table for people and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.characters import visible

ARMS = {
    "base_closed_book": "base, no documents",
    "base_with_contexts": "base + retrieved contexts",
    "adapter_with_contexts": "adapter + retrieved contexts",
    "champion_with_contexts": "champion + retrieved contexts",
    "adapter_with_gold_context": "adapter + gold context",
}


def summarise(store: ArtifactStore, name: str, registered: Mapping[str, Any]) -> dict[str, Any]:
    """What a run came to, as JSON, from the artifacts that it made or found.

    Args:
      store: the home's artifacts.
      name: the spec's name.
      registered: name, version and alias of the registered adapter.
    """
    evaluation, verdict = store.latest(name, "evaluation"), store.latest(name, "verdict")
    judged = json.loads(verdict.file("verdict.json").read_text(encoding="utf-8"))
    report = json.loads(evaluation.file("report.json").read_text(encoding="utf-8"))
    return {
        "questions": store.latest(name, "contexts").counts["questions"],
        "evaluation": {arm: {**_scores(scores), "n": scores["n"]} for arm, scores in report["arms"].items()},
        "difference": _scores(report["difference"]),
        "checks": judged["checks"],
        "retrieval": {"recall_at_k": report["retrieval"]["recall_at_k"] or {}},
        "adapter": str(store.latest(name, "adapter").path),
        "report": str(evaluation.file("report.html")),
        "verdict": str(verdict.file("verdict.html")),
        "registered": {key: registered[key] for key in ("name", "version", "alias")},
    }


def _scores(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Exact match with its ``interval``, and F1 with its ``f1_interval``."""
    return {
        "exact_match": figures["exact_match"],
        "interval": figures["interval"]["exact_match"],
        "f1": figures["f1"],
        "f1_interval": figures["interval"]["f1"],
    }


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Show the table of arms, the paired difference, recall and what became of the adapter."""
    test = summary["questions"]["test"]
    table = Table(title=f"{test} held-out questions", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("exact match", justify="right", no_wrap=True)
    table.add_column("token F1", justify="right", no_wrap=True)
    for arm, scores in summary["evaluation"].items():
        table.add_row(
            ARMS.get(arm, arm),
            _with_interval(scores["exact_match"], scores["interval"]),
            _with_interval(scores["f1"], scores["f1_interval"]),
            style="bold" if arm == "adapter_with_contexts" else None,
        )
    console.print(table)
    difference = summary["difference"]
    console.print(
        "adapter − base, both with contexts (paired): exact match "
        f"[bold]{_with_interval(difference['exact_match'], difference['interval'], sign='+')}[/]"
    )
    recall = ", ".join(f"@{k} {value:.3f}" for k, value in summary["retrieval"]["recall_at_k"].items())
    registered = summary["registered"]
    console.print(f"retrieval recall {recall or 'not known: no question has evidence'}")
    console.print(
        f"{registered['alias']}: [bold]{registered['name']}[/] version [bold]{registered['version']}[/]"
    )
    for check in summary["checks"]:
        if not check["passed"]:
            told = f"{check['name']}: expected {check['expected']}, got {check['actual']}"
            console.print(f"  no champion by {visible(told)}", markup=False)  # may name a slice of documents


def print_places(places: Mapping[str, str], console: Console) -> None:
    """Show where things are, a line each."""
    width = max(len(label) for label in places)
    for label, place in places.items():
        console.print(f"  {label:<{width}}  {place}", markup=False, highlight=False, soft_wrap=True)


def _with_interval(value: float, interval: Sequence[float], sign: str = "") -> str:
    low, high = interval
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
