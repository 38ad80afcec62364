"""What OpenLineage is told of a finished stage: the versions that it read and wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.providers.openlineage.extractors import OperatorLineage

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.lineage import datasets, registration_datasets


def stage_lineage(result: Mapping[str, Any], keys: Mapping[str, str]) -> OperatorLineage:
    """Inputs and outputs for the task's COMPLETE event.

    Args:
      result: the JSON object that the stage's command printed.
      keys: kind → key of the artifacts that the stage took.
    """
    store = ArtifactStore()
    if "kind" in result:
        inputs, outputs = datasets(store, store.get(result["kind"], result["key"]))
    elif "version" in result:
        taken = [store.get(kind, key) for kind, key in keys.items()]
        inputs, outputs = registration_datasets(store, taken, result["name"], result["version"])
    else:  # a shard: what it leaves in the cache has no version, and the index tells the rest
        return OperatorLineage()
    return OperatorLineage(inputs=inputs, outputs=outputs)
