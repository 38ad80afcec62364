"""The pages "Adapters": the lines, a line's versions and history, one version with all that made it."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response

from jora_tasks.airflow.pages import home
from jora_tasks.airflow.pages.access import MayPromoteDep
from jora_tasks.airflow.pages.adapter_lineage import adapter_lineage
from jora_tasks.airflow.pages.files import REPORTS, artifact_file
from jora_tasks.airflow.pages.graph import NAMES, draw
from jora_tasks.airflow.pages.rendering import page, prefix_of
from jora_tasks.airflow.pages.scores import MEASURE, measures, score_plot, scores_of
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.evaluation import charts
from jora_tasks.evaluation.report import read_history
from jora_tasks.registry import CHAMPION, Line, Listed, earlier_champions

router = APIRouter()
LINES, VERSIONS, MOVES = 25, 25, 25  # rows of a page


@router.get("/")
@router.get("/adapters")
def lines(request: Request, after: str = "") -> Response:
    """Every line of adapters."""
    found = home.registry().lines(LINES, after)
    return page(request, "lines.html.j2", lines=found.items, after=after, older=found.token)


@router.get("/adapters/{name}")
def line(
    request: Request, may: MayPromoteDep, name: str, after: str = "", measure: str = MEASURE
) -> Response:
    """A line: scores over time, versions, the champion's history."""
    registry = home.registry()
    head = known(name)
    found = registry.listed(name, VERSIONS, after)
    champion = head.aliases.get(CHAMPION)
    transitions = registry.transitions(name)
    return page(
        request,
        "line.html.j2",
        line=head,
        versions=found.items,
        after=after,
        older=found.token,
        champion=champion,
        may=may,
        measure=measure,
        measures=measures(found.items),
        plot=score_plot(found.items, measure, champion, prefix_of(request)),
        scores={each.adapter.version: scores_of(each, measure) for each in found.items},
        moves=transitions[::-1][:MOVES],
        moved=len(transitions),
        may_return=may and bool(earlier_champions(transitions)),
    )


@router.get("/adapters/{name}/versions/{version}")
def show(request: Request, may: MayPromoteDep, name: str, version: int) -> Response:
    """One version: its scores, verdict, training, and everything that made it."""
    registry, store = home.registry(), home.store()
    listed, held = found(name, version), known(name).aliases
    nodes, corpus = adapter_lineage(store, listed, held.get(CHAMPION))
    key = listed.adapter.key
    return page(
        request,
        "version.html.j2",
        name=name,
        listed=listed,
        version=version,
        aliases=sorted(alias for alias, each in held.items() if each == version),
        may=may,
        rows=[(measure, scores_of(listed, measure)) for measure in measures([listed])],
        verdict=read_verdict(store, listed),
        curves=_curves(store, key),
        graph=draw(nodes, prefix_of(request), f"What made version {version} of {name}"),
        names=NAMES,
        nodes=nodes,
        corpus=corpus,
        reports=[
            (kind, each_key)
            for kind, each_key in (("evaluation", listed.evaluation_key), ("verdict", listed.verdict_key))
            if artifact_file(store, kind, each_key, REPORTS[kind])
        ],
        moves=[each for each in registry.transitions(name) if version in (each.version, each.previous)][::-1],
    )


def known(name: str) -> Line:
    """A line.

    Raises:
      HTTPException: 404 if there is none.
    """
    head = home.registry().line(name)
    if head is None:
        raise HTTPException(404, f"There is no line of adapters {name!r} in the registry.")
    return head


def found(name: str, version: int) -> Listed:
    """A version.

    Raises:
      HTTPException: 404 if there is none.
    """
    known(name)
    listed = home.registry().listed_version(name, version)
    if listed is None or not listed.adapter.digest:  # a shared registry has models that are no adapters
        raise HTTPException(404, f"There is no version {version} of {name!r} in the registry.")
    return listed


def read_verdict(store: ArtifactStore, listed: Listed) -> dict[str, Any] | None:
    """The gate's verdict on a version, or None where its artifact is not here."""
    file = artifact_file(store, "verdict", listed.verdict_key, "verdict.json")
    return json.loads(file.read_text(encoding="utf-8")) if file else None


def _curves(store: ArtifactStore, key: str) -> list[tuple[str, Any]]:
    """The curves of the training, as far as there are steps."""
    file = artifact_file(store, "adapter", key, "metrics.jsonl")
    history = read_history(file) if file else []
    drawn = []
    for figure, title, style in (
        ("loss", "Training loss", "loss"),
        ("eval_loss", "Loss on the dev questions", "loss"),
        ("learning_rate", "Learning rate", "rate"),
    ):
        rows = [row for row in history if isinstance(row.get(figure), int | float)]
        steps, values = [row["step"] for row in rows], [float(row[figure]) for row in rows]
        if rows:
            drawn.append((title, charts.lines(steps, values, title, x_label="step", style=style)))
    return drawn
