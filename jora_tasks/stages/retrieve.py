"""The costly part of the contexts ahead of them: vectors and reranked chunks of a part of the questions.

Contexts that are made afterwards take the parts that are there, and make the rest themselves; they come out
as without parts. Parts may be made at the same time by several processes that share the home or its
artifacts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.progress import Progress
from jora_tasks.spec import RunSpec
from jora_tasks.stages.parts import check_shard
from jora_tasks.stages.retrieving import Retrieving, settle

if TYPE_CHECKING:
    from retrieval.ahead import Ahead

VERSION = 1
KIND, FILE = "retrieved", "questions.parquet"


def retrieve_shard(
    spec: RunSpec, index: Artifact, store: ArtifactStore, progress: Progress, shard: int
) -> dict[str, int]:
    """Embed and rerank for one of ``retrieval.shards`` parts of the questions.

    Args:
      shard: number of the part, from 0.

    Returns:
      Counts: the different questions of the part, and how many of them were done already.

    Raises:
      InputError: see `jora_tasks.stages.contexts.retrieve_contexts`; or if there is no such part.
    """
    from retrieval.ahead import Ahead

    check_shard("retrieval", shard, spec.retrieval.shards)
    retrieving = settle(spec, index, store)

    def write(folder: Path) -> dict[str, int]:
        ahead = Ahead()
        search = retrieving.search(ahead)
        mine = search.asked[shard :: spec.retrieval.shards]
        for _ in search.rankings(
            mine, lambda done: progress("retrieve", done=done, total=len(mine), unit="questions")
        ):
            pass  # what the models make of them is kept
        return {"questions": ahead.write(folder / FILE, [each.question.question for each in mine])}

    part = store.build(
        KIND,
        version=VERSION,
        settings=_settings(retrieving, shard),
        inputs=retrieving.inputs(),
        write=write,
    )
    questions = part.counts["questions"]
    return {"questions": questions, "questions_reused": questions if part.reused else 0}


def made_ahead(retrieving: Retrieving) -> Ahead | None:
    """What the parts have that are there and whole; None where there are to be no parts."""
    from retrieval.ahead import Ahead

    shards, store = retrieving.spec.retrieval.shards, retrieving.store
    if shards == 1:
        return None
    ahead = Ahead()
    for shard in range(shards):
        key = store.key(
            KIND, version=VERSION, settings=_settings(retrieving, shard), inputs=retrieving.inputs()
        )
        try:
            ahead.read(store.get(KIND, key).file(FILE))
        except InputError:
            continue  # missing or damaged: made with the rest
    return ahead


def _settings(retrieving: Retrieving, shard: int) -> dict[str, Any]:
    part = {"shard": shard, "shards": retrieving.spec.retrieval.shards}
    return {**retrieving.settings(), "part": part}
