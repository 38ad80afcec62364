"""What OpenLineage is told of a finished task: the versions that its stage read and wrote, and champions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from airflow.providers.openlineage.api.core import emit, is_openlineage_active
from airflow.providers.openlineage.extractors import OperatorLineage
from airflow.providers.openlineage.plugins import macros

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.datasets import cost_facets
from jora_tasks.events import result_datasets, tell_moves

_log = logging.getLogger(__name__)


def stage_lineage(
    result: Mapping[str, Any], keys: Mapping[str, str], documents: str, task_instance: Any
) -> OperatorLineage:
    """Inputs and outputs for the task's COMPLETE event; moves of the champion have events of their own.

    Args:
      result: the JSON object that the stage's command printed.
      keys: kind → key of the artifacts that the stage took.
      documents: where the run's documents lie.
    """
    store = ArtifactStore()
    inputs, outputs = result_datasets(store, result, keys, documents)
    if {"version", "transition"} & result.keys() and is_openlineage_active():
        run = f"{task_instance.dag_id}/{task_instance.run_id}"
        try:
            tell_moves(store, result["name"], emit, {run: _parent(task_instance)})
        except Exception as error:  # the registry's trouble: the next telling makes up for it
            _log.warning("The champion's moves could not be told: %s", type(error).__name__)
    return OperatorLineage(inputs=inputs, outputs=outputs, run_facets=cost_facets(result))


def _parent(task_instance: Any) -> Any:
    """The facet that makes this task the parent of a run."""
    from openlineage.client.facet_v2 import parent_run

    return parent_run.ParentRunFacet(
        run=parent_run.Run(runId=macros.lineage_run_id(task_instance)),
        job=parent_run.Job(
            namespace=macros.lineage_job_namespace(), name=macros.lineage_job_name(task_instance)
        ),
    )
