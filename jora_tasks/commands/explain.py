"""``jora index --explain``: where each retriever has the chunks of the latest index for a question."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table
from rich.text import Text

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.characters import visible
from jora_tasks.commands.options import console, plain
from jora_tasks.spec import RunSpec

_STEPS = ("dense", "lexical", "fused", "reranked")
_WIDTH = 60  # characters shown of a text


def explain(question: str, spec: RunSpec, store: ArtifactStore) -> dict[str, Any]:
    """The first chunks of every retriever with their ranks and scores.

    Returns:
      A JSON object: question, index, ``retriever`` and ``chunks`` by rank in the end, each with rank (None
      if it is left out), chunk_id, document_id, heading, text, and rank and score by step that has it.

    Raises:
      InputError: for an empty question, without an index, or if the spec's models are not those that built
        it.
    """
    from jora_tasks.stages.searching import check_question, latest_contexts, open_again
    from retrieval.search import mode_of

    check_question(question)
    index = store.latest(spec.name, "index")
    searcher, weight, why = open_again(spec, index, latest_contexts(spec, store), store)
    chunks = [
        {
            "rank": each.rank,
            "chunk_id": each.chunk.id,
            "document_id": each.chunk.document_id,
            "heading": each.chunk.heading,
            "text": each.chunk.text,
            **{step: vars(place) for step, place in each.places.items()},
        }
        for each in searcher.explain(question, weight)
    ]
    return {
        "question": question,
        "index": index.key,
        "retriever": {"mode": mode_of(weight), "dense_weight": weight, "reason": why},
        "chunks": chunks,
    }


def show_explanation(result: dict[str, Any], as_json: bool) -> None:
    """Print what `explain` returns."""
    if as_json:
        print(json.dumps(result), flush=True)
        return
    steps = [step for step in _STEPS if any(step in each for each in result["chunks"])]
    table = Table("rank", *steps, title=Text(visible(result["question"])), title_justify="left")
    table.add_column("document", overflow="fold")  # whole, so that it can be looked for
    table.add_column("chunk")
    for each in result["chunks"]:
        shown = " ".join(f"{each['heading']}: {each['text']}".split())
        table.add_row(
            str(each["rank"] or "–"),
            *(_place(each.get(step)) for step in steps),
            Text(visible(each["document_id"])),
            Text(_shortened(visible(shown))),
        )
    console.print(table)
    retriever = result["retriever"]
    plain(f"mode {retriever['mode']} ({retriever['reason']}); index {result['index']}")


def _place(place: dict[str, Any] | None) -> str:
    return f"{place['rank']} ({place['score']:.4g})" if place else "–"


def _shortened(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
