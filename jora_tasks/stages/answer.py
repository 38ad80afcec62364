"""The costly part of an evaluation ahead of it: a part of every arm's answers.

An evaluation that is made afterwards takes the parts, and makes what is missing itself. Parts may be made at
the same time by several processes that share the home, each with devices of its own.
"""

from __future__ import annotations

from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.progress import Progress
from jora_tasks.spec import RunSpec
from jora_tasks.stages.answering import Answering, Counter, size_of_part
from jora_tasks.stages.arms import planned
from jora_tasks.stages.parts import check_shard


def answer_shard(
    spec: RunSpec, adapter: Artifact, prompts: Artifact, store: ArtifactStore, progress: Progress, shard: int
) -> dict[str, int]:
    """Ask one of ``evaluation.shards`` parts of the questions, of every arm that has not answered it yet.

    Args:
      shard: number of the part, from 0.

    Returns:
      Counts: the answers of all arms in this part, and how many of them were there already.

    Raises:
      InputError: see `jora_tasks.stages.arms.planned`; or if there is no such part.
    """
    check_shard("evaluation", shard, spec.evaluation.shards)
    with planned(spec, adapter, prompts, store) as plan:
        sizes = [(arm, size_of_part(spec, arm, shard)) for arm in plan.every_arm]
        total = sum(size for _, size in sizes)
        counter = Counter(progress, "answer", total)
        answering = Answering(spec, plan.base, plan.base_folder, store, counter, plan.before_the_first)
        reused = 0
        for arm, size in sizes:
            if answering.has_whole(arm):
                counter.finish(arm.name, size)
                reused += size
            elif answering.part(arm, shard).reused:
                reused += size
    return {"answers": total, "answers_reused": reused}
