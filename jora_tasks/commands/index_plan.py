"""``jora index --plan``: what an index of very many chunks would take, from rates measured here."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.commands.options import console
from jora_tasks.errors import InputError
from jora_tasks.spec import RunSpec

if TYPE_CHECKING:
    from retrieval.documents import Document

_MOST_CHUNKS = 100_000_000_000


def plan_index(
    chunks: int, price_per_hour: float | None, spec: RunSpec, store: ArtifactStore
) -> dict[str, Any]:
    """The steps of `retrieval.build_plan` with the spec's embedder, type and shards.

    Args:
      chunks: how many there would be.
      price_per_hour: of the machine of one task; for ``cost``, else None.

    Returns:
      A JSON object: chunks, dimension, type, rates, ``steps`` and, over all of them, ``seconds`` from end to
      end, ``task_seconds``, the most ``memory`` of a task and ``cost``.

    Raises:
      InputError: for fewer chunks than one, a price below 0, or a type that cannot be planned for.
    """
    from jora_tasks.stages.embed import open_embedder
    from retrieval.build_plan import measure_rates, plan_build, planned_type
    from retrieval.indexing import Cutting

    if not 1 <= chunks <= _MOST_CHUNKS:
        raise InputError(f"--plan {chunks}: plan for 1 to {_MOST_CHUNKS:,} chunks.")
    if price_per_hour is not None and not 0 <= price_per_hour < 1e6:
        raise InputError(f"--price-per-hour {price_per_hour}: give a price from 0 up.")
    config = spec.index
    factory = planned_type(config.type, chunks)
    embedder, _ = open_embedder(spec, store)
    cutting = Cutting(config.chunk_tokens, config.chunk_overlap)
    rates = measure_rates(_documents(), embedder, cutting, factory)
    dimension = embedder.identity.dimension
    steps = plan_build(chunks, dimension, config.type, config.shards, rates)
    hours = [each.tasks * each.seconds / 3600 for each in steps]
    cost = [None if price_per_hour is None else each * price_per_hour for each in hours]
    return {
        "chunks": chunks,
        "dimension": dimension,
        "type": factory,
        "rates": asdict(rates),
        "steps": [{**asdict(step), "cost": each} for step, each in zip(steps, cost, strict=True)],
        "seconds": sum(each.seconds for each in steps),
        "task_seconds": sum(each.tasks * each.seconds for each in steps),
        "memory": max(each.memory for each in steps),
        "cost": None if price_per_hour is None else sum(hours) * price_per_hour,
    }


def show_plan(result: dict[str, Any], as_json: bool) -> None:
    """Print what `plan_index` returns."""
    if as_json:
        print(json.dumps(result), flush=True)
        return
    priced = result["cost"] is not None
    table = Table(
        title=f"{result['chunks']:,} chunks of {result['dimension']} numbers, {result['type']}; "
        "predicted from rates measured here, not run",
        title_justify="left",
    )
    table.add_column("step")
    for name in ("tasks", "hours each", "GB of memory each", "GB of disk", *(["cost"] if priced else [])):
        table.add_column(name, justify="right")
    for step in result["steps"]:
        figures = [step["seconds"] / 3600, step["memory"] / 1e9, step["disk"] / 1e9]
        cost = [f"{step['cost']:,.2f}"] if priced else []
        table.add_row(step["name"], str(step["tasks"]), *(f"{each:,.2f}" for each in figures), *cost)
    console.print(table)
    spent = f", cost {result['cost']:,.2f}" if priced else ""
    console.print(
        f"{result['seconds'] / 3600:,.1f} hours from end to end, {result['task_seconds'] / 3600:,.1f} of "
        f"tasks{spent}; at most {result['memory'] / 1e9:,.1f} GB of memory in a task",
        highlight=False,
    )


def _documents() -> list[Document]:
    """Texts that every Python has: the topics of its language reference."""
    from pydoc_data.topics import topics

    from retrieval.documents import Document

    return [Document(name, f"{name}.rst", name, text) for name, text in sorted(topics.items())]
