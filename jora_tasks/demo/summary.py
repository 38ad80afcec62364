"""What a finished demo shows: a table for people and a JSON file for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.progress import BUILT, REUSED, Event

ARMS = {
    "base_closed_book": "base model, no documents",
    "base_with_contexts": "base model + retrieved contexts",
    "adapter_with_contexts": "adapter + retrieved contexts",
    "champion_with_contexts": "champion before + retrieved contexts",
}


def summarise(
    store: ArtifactStore, name: str, dag_runs: Mapping[str, str], events: Sequence[Event]
) -> dict[str, Any]:
    """The demo's outcome as JSON, from the artifacts that its runs made or found.

    Args:
      store: the home's artifacts.
      name: the spec's name.
      dag_runs: dag id -> final state.
      events: all events of the runs; the last of each stage tells its time and outcome.
    """
    ended = {event.stage: event for event in events if event.state in (BUILT, REUSED)}
    report = json.loads(store.latest(name, "evaluation").file("report.json").read_text())
    registered = ended["register"].fields
    return {
        "dag_runs": dict(dag_runs),
        "questions": store.latest(name, "contexts").counts["questions"],
        "evaluation": {arm: {**_scores(scores), "n": scores["n"]} for arm, scores in report["arms"].items()},
        "difference": _scores(report["difference"]),
        "retrieval": {"recall_at_k": report["retrieval"]["recall_at_k"]},
        "adapter": str(store.latest(name, "adapter").path),
        "report": str(store.latest(name, "evaluation").file("report.html")),
        "registered": {key: registered[key] for key in ("name", "version", "alias")},
        "seconds": {stage: event.fields["seconds"] for stage, event in ended.items()},
        "reused": sorted(stage for stage, event in ended.items() if event.state == REUSED),
    }


def _scores(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Exact match with its ``interval``, and F1 with its ``f1_interval``."""
    return {
        "exact_match": figures["exact_match"],
        "interval": figures["interval"]["exact_match"],
        "f1": figures["f1"],
        "f1_interval": figures["interval"]["f1"],
    }


def write_summary(summary: Mapping[str, Any], file: Path) -> None:
    """Write the summary whole or not at all."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(summary, indent=2) + "\n")
    temporary.replace(file)


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Show the table of arms, the paired difference, recall and where things are."""
    test = summary["questions"]["test"]
    table = Table(title=f"{test} held-out questions, on facts never trained on", title_justify="left")
    table.add_column("")
    table.add_column("exact match", justify="right")
    table.add_column("token F1", justify="right")
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
    console.print(f"retrieval recall {recall}")
    console.print(
        f"{registered['alias']}: [bold]{registered['name']}[/] version [bold]{registered['version']}[/]"
    )


def print_places(places: Mapping[str, str], console: Console) -> None:
    """Show where things are, a line each."""
    width = max(len(label) for label in places)
    for label, place in places.items():
        console.print(f"  {label:<{width}}  {place}", markup=False, highlight=False, soft_wrap=True)


def _with_interval(value: float, interval: Sequence[float], sign: str = "") -> str:
    low, high = interval
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
