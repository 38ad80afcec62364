"""OpenLineage events with the versions of what a stage read and wrote."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from airflow.providers.openlineage.api import emit_dataset_lineage

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.lineage import datasets, registration_datasets

log = logging.getLogger(__name__)


def emit_lineage(result: Mapping[str, Any], keys: Mapping[str, str]) -> None:
    """Emit the inputs and outputs of what a stage reported; a fault is only logged.

    Args:
      result: the JSON object that the stage's command printed.
      keys: kind → key of the artifacts that the stage took.
    """
    try:
        store = ArtifactStore()
        if "kind" in result:
            inputs, outputs = datasets(store, store.get(result["kind"], result["key"]))
        else:
            taken = [store.get(kind, key) for kind, key in keys.items()]
            inputs, outputs = registration_datasets(store, taken, result["name"], result["version"])
        emit_dataset_lineage(inputs=[*inputs], outputs=[*outputs])
    except Exception:  # lineage is told on the side; the stage's work stands without it
        log.warning("The OpenLineage event of this stage was not emitted", exc_info=True)
