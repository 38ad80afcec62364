"""``jora embed``: one part of a corpus's vectors, for an index that is built afterwards."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.commands.options import JsonOption, SetOption, SpecOption, console, plain
from jora_tasks.commands.watching import shown_progress
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

    settings, store = load_spec(spec, tuple(set_ or ())), ArtifactStore()
    taken = store.given_or_latest(settings.name, "corpus", corpus)
    started = time.monotonic()
    with shown_progress(as_json) as progress:
        progress("embed")
        try:
            counts = embed_shard(settings, taken, store, progress, shard)
        except BaseException as error:
            progress("embed", state=FAILED, reason=type(error).__name__)
            raise
        seconds = round(time.monotonic() - started, 3)
        progress("embed", state=BUILT, seconds=seconds, shard=shard)
    result = {"stage": "embed", "state": BUILT, "seconds": seconds, "shard": shard, "counts": counts}
    if as_json:
        print(json.dumps(result), flush=True)
        return
    console.print(f"[bold]shard {shard}[/] of {settings.index.shards} embedded in {seconds:.1f} s")
    for name, value in counts.items():
        plain(f"  {name.replace('_', ' ')}: {value}")
