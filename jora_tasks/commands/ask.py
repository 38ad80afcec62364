"""``jora ask``: a question answered with its sources."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.characters import visible_lines
from jora_tasks.commands.options import JsonOption, SpecOption, console, plain, spec_or_demo
from jora_tasks.registry import CHAMPION
from jora_tasks.spec import load_spec


def ask(
    question: Annotated[str, typer.Argument(help="What to answer from the documents.")],
    adapter: Annotated[
        str | None,
        typer.Option(
            help="Key of an adapter, or the start of it; candidate; a PEFT folder. By default the champion.",
            metavar="KEY",
        ),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Ask the base model, without an adapter.")] = False,
    spec: SpecOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer from the index and the champion, with numbered sources; without --spec those of the demo."""
    from jora_tasks.asking import ask as answer

    if base and adapter is not None:
        raise typer.BadParameter("is given as well as --base; give one of them.", param_hint="--adapter")
    who = None if base else adapter or CHAMPION
    store = ArtifactStore()
    show_answer(answer(question, load_spec(spec_or_demo(spec, store.home)), store, who), as_json)


def show_answer(result: dict[str, Any], as_json: bool) -> None:
    """Print what `jora_tasks.asking.ask` returns."""
    if as_json:
        print(json.dumps(result), flush=True)
        return
    text = visible_lines(result["answer"]) or "(no answer)"
    console.print(text, style="bold", markup=False, highlight=False)
    if result["cut"]:
        plain("  (cut here: evaluation.max_new_tokens of the spec allows no more)")
    for source in result["sources"]:
        place = f"{source['document_id']}, characters {source['start']} to {source['end']}"
        plain(f"  [{source['number']}] {source['heading']} ({place})")
    if not result["sources"]:
        plain("  no source was found")
