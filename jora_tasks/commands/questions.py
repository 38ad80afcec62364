"""``jora questions``: draft questions from the documents."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.commands.options import JsonOption, SetOption, SpecOption, console, plain
from jora_tasks.commands.watching import shown_progress
from jora_tasks.errors import InputError
from jora_tasks.spec import RunSpec, load_spec

if TYPE_CHECKING:
    from jora_tasks.drafting.writers import Writer


def questions(
    output: Annotated[
        Path,
        typer.Option("--output", help="Questions file (JSONL) to write, or to go on with.", metavar="FILE"),
    ],
    index: Annotated[
        str | None, typer.Option("--index", help="Key of the index; by default the latest.", metavar="KEY")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Questions to stop at; by default one of every chunk is tried.")
    ] = None,
    min_tokens: Annotated[
        int, typer.Option(min=1, max=8192, help="Chunks of fewer tokens are left out.")
    ] = 20,
    max_new_tokens: Annotated[
        int, typer.Option(min=8, max=4096, help="Longest reply of the model, in tokens.")
    ] = 96,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="OpenAI-compatible API that drafts, as in http://localhost:8000/v1; by default model.base.",
            metavar="URL",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the endpoint's model.")] = None,
    key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable that holds the endpoint's key.", metavar="NAME"),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests to the endpoint at a time.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of chunks.")] = 0,
    spec: SpecOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draft questions with answers and evidence from the index's chunks; goes on from where it stopped."""
    from jora_tasks.drafting.run import draft_questions
    from retrieval.chunk_table import ChunkTable
    from retrieval.index import CHUNKS

    settings, store = load_spec(spec, tuple(set_ or ())), ArtifactStore()
    artifact = store.given_or_latest(settings.name, "index", index)
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: its folder does not exist; make it, or name another.")
    with (
        _writer(settings, store, endpoint, model, key_env, max_new_tokens, concurrency) as writer,
        shown_progress(as_json) as progress,
    ):
        done = draft_questions(
            ChunkTable(artifact.file(CHUNKS)),
            writer,
            output,
            count=count,
            min_tokens=min_tokens,
            seed=seed,
            on_progress=lambda tried, total, kept: progress(
                "questions", done=tried, total=total, unit="chunks", kept=kept
            ),
        )
    if as_json:
        print(json.dumps({"output": str(output), **done}), flush=True)
        return
    console.print(
        f"[bold]questions[/] {done['kept']} kept of {done['attempted']} chunks attempted, "
        f"{done['chunks']} in all"
    )
    for reason, number in done["refused"].items():
        plain(f"  {reason}: {number}")
    plain(f"  {output}" if done["kept"] else "  nothing to write")


@contextlib.contextmanager
def _writer(
    spec: RunSpec,
    store: ArtifactStore,
    endpoint: str | None,
    model: str | None,
    key_env: str | None,
    max_new_tokens: int,
    concurrency: int,
) -> Iterator[Writer]:
    """The endpoint's model, or else the base model."""
    if endpoint is None:
        if model or key_env:
            raise InputError("--model and --key-env are the endpoint's; name it with --endpoint.")
        from jora_tasks.drafting.writers import BaseModelWriter

        yield BaseModelWriter(spec, store.home, max_new_tokens)
        return
    if not model:
        raise InputError("--endpoint needs the name of its model; give it with --model.")
    from jora_tasks.drafting.endpoint import EndpointWriter

    with contextlib.closing(
        EndpointWriter(
            endpoint, model, key_env=key_env, max_new_tokens=max_new_tokens, concurrency=concurrency
        )
    ) as writer:
        yield writer
