"""``jora embed``, ``jora retrieve`` and ``jora answer``: a part of a stage's costly work, ahead of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.commands.options import JsonOption, SetOption, SpecOption, console, plain
from jora_tasks.commands.watching import shown_progress
from jora_tasks.costs import Recorder, recording
from jora_tasks.progress import BUILT, FAILED
from jora_tasks.spec import load_spec


def embed(
    shard: Annotated[int, typer.Option(min=0, help="Which of index.shards parts, from 0.")] = 0,
    corpus: Annotated[
        str | None, typer.Option(help="Key of the corpus; by default the latest.", metavar="KEY")
    ] = None,
    spec: SpecOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embed a part of the corpus ahead of its index."""
    from jora_tasks.stages.embed import embed_shard

    _work("embed", "index", {"corpus": corpus}, embed_shard, shard, spec, set_, as_json)


def retrieve(
    shard: Annotated[int, typer.Option(min=0, help="Which of retrieval.shards parts, from 0.")] = 0,
    index: Annotated[
        str | None, typer.Option(help="Key of the index; by default the latest.", metavar="KEY")
    ] = None,
    spec: SpecOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embed and rerank for a part of the questions ahead of their contexts."""
    from jora_tasks.stages.retrieve import retrieve_shard

    _work("retrieve", "retrieval", {"index": index}, retrieve_shard, shard, spec, set_, as_json)


def answer(
    shard: Annotated[int, typer.Option(min=0, help="Which of evaluation.shards parts, from 0.")] = 0,
    adapter: Annotated[
        str | None, typer.Option(help="Key of the adapter; by default the latest.", metavar="KEY")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Key of the prompts; by default the latest.", metavar="KEY")
    ] = None,
    spec: SpecOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a part of the held-out questions ahead of the evaluation."""
    from jora_tasks.stages.answer import answer_shard

    keys = {"adapter": adapter, "prompts": prompts}
    _work("answer", "evaluation", keys, answer_shard, shard, spec, set_, as_json)


def _work(
    stage: str,
    section: str,
    keys: Mapping[str, str | None],
    work: Callable[..., Mapping[str, int]],
    shard: int,
    spec: Path | None,
    set_: list[str] | None,
    as_json: bool,
) -> None:
    """Do a part, shown while it is done, and say what came of it.

    Args:
      section: of the spec, whose ``shards`` says how many parts there are.
      keys: of the artifacts that the part is of, by kind; None for the latest.
      work: takes spec, these artifacts in their order, store, progress and shard; gives counts.
    """
    settings, store = load_spec(spec, tuple(set_ or ())), ArtifactStore()
    recorder = Recorder(store, stage, settings.name)
    taken = [store.given_or_latest(settings.name, kind, key) for kind, key in keys.items()]
    with shown_progress(as_json) as progress:
        progress(stage)
        with recording(recorder, progress) as told_of:
            try:
                counts = work(settings, *taken, store, told_of, shard)
            except BaseException as error:
                progress(stage, state=FAILED, reason=type(error).__name__)
                raise
            recorder.state = BUILT
        seconds = recorder.cost().seconds
        progress(stage, state=BUILT, seconds=seconds, shard=shard)
    told = {"stage": stage, "state": BUILT, "seconds": seconds, **recorder.told()}
    result = {**told, "shard": shard, "counts": counts}
    if as_json:
        print(json.dumps(result), flush=True)
        return
    shards = getattr(settings, section).shards
    console.print(f"[bold]{stage} {shard}[/] of {shards} done in {seconds:.1f} s")
    for name, value in counts.items():
        plain(f"  {name.replace('_', ' ')}: {value}")
