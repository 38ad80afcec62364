"""What the DAGs make, as Airflow assets; OpenLineage has the same names for them.

An asset is a kind of artifact in this home. Which artifact it is at the moment, its key and digest,
travels in the extra of the asset event. The event's partition key is the digest of the corpus that it was
made for: what is scheduled on the asset, by `PartitionedAssetTimetable`, runs once for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Asset

from jora_tasks.artifacts import artifacts_place, jora_home


def artifact_asset(kind: str) -> Asset:
    """The asset of all artifacts of a kind: ``file:///…/artifacts/<kind>``, or where machines share them."""
    return Asset(name=kind, uri=artifacts_place(jora_home(), kind), group="artifacts")


CORPUS = artifact_asset("corpus")
INDEX = artifact_asset("index")
CONTEXTS = artifact_asset("contexts")
PROMPTS = artifact_asset("prompts")
ADAPTER = artifact_asset("adapter")
EVALUATION = artifact_asset("evaluation")
VERDICT = artifact_asset("verdict")


def event_extra(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """What an asset event tells: the artifact and the line of adapters it was made for.

    Args:
      name: `RunSpec.name` of the run.
      result: JSON object that a stage's command printed.
    """
    told = {key: result[key] for key in ("key", "digest", "state", "counts", "snapshot") if key in result}
    return {"name": name, **told}
