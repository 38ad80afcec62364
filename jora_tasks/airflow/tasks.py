"""The stages from contexts to champion as tasks: which artifact goes where, and what each task needs.

The DAGs differ in how many adapters they train. What a stage takes, makes and runs on is told here, once;
the functions make tasks of the DAG or task group in which they are called.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from airflow.sdk import Asset, chain, get_current_context, task

from jora_tasks.airflow.approval import PromoteOperator, PromotionApproval
from jora_tasks.airflow.assets import ADAPTER, CONTEXTS, EVALUATION, INDEX, PROMPTS, VERDICT
from jora_tasks.airflow.detached import DetachedStageOperator
from jora_tasks.airflow.environment import GPU_POOL, GPU_QUEUE
from jora_tasks.airflow.operators import StageOperator, run_spec

GPU_POD = "JORA_GPU_POD_TEMPLATE"
"""File of the pod that Airflow's Kubernetes executor, which knows no queues, gives tasks on a device."""

TRAIN_POD = "JORA_TRAIN_POD_TEMPLATE"
"""File of the pod that it gives the task `train` instead, which may train in a Job of many pods."""


@dataclass(frozen=True)
class Judged:
    """What the stages of one adapter return, for the tasks after them."""

    adapter: Any
    evaluation: Any
    verdict: Any


def on_devices(*templates: str) -> dict[str, Any]:
    """What tells executors of any kind that a task needs a device.

    Args:
      templates: variables that name the pod's file ahead of `GPU_POD`.
    """
    pod = next(filter(None, map(os.environ.get, (*templates, GPU_POD))), None)
    config = {"executor_config": {"pod_template_file": pod}} if pod else {}
    return {"pool": GPU_POOL, "queue": GPU_QUEUE, **config}


def shards(section: str) -> Any:
    """Task ``<section>_shards``: options of each part made ahead of a stage; none where that works alone.

    Args:
      section: of the spec, whose ``shards`` is the number of parts.
    """

    @task(task_id=f"{section}_shards")
    def options() -> list[list[str]]:
        count = getattr(run_spec(get_current_context()), section).shards
        return [["--shard", str(shard)] for shard in range(count)] if count > 1 else []

    return options()


def retrieve_contexts(event_input: Asset | None = None, after: Any = None) -> StageOperator:
    """Task ``contexts``, and mapped tasks ``retrieve`` ahead of it.

    Args:
      event_input: asset by whose event they take the index of that event.
      after: a task that comes first.
    """
    parts = shards("retrieval")
    retrieve = StageOperator.partial(
        task_id="retrieve", stage="retrieve", event_input=event_input, inlets=[INDEX]
    ).expand(arguments=parts)
    contexts = StageOperator(
        task_id="contexts",
        stage="contexts",
        event_input=event_input,
        inlets=[INDEX],
        outlets=[CONTEXTS],
        trigger_rule="none_failed",  # without shards the task before it is skipped
    )
    chain(*([after] if after else []), parts, retrieve, contexts)
    return contexts


def train_and_judge(contexts: StageOperator, overrides: Any = None) -> Judged:
    """Tasks ``prompts``, ``train``, ``evaluate`` and ``gate`` of one adapter, and mapped tasks ``answer``.

    Args:
      overrides: settings that this adapter has instead of the run's, as a variant of a sweep does. Its
        evaluation answers alone: Airflow maps no tasks within a mapped task group.
    """
    prompts = StageOperator(
        task_id="prompts",
        stage="prompts",
        overrides=overrides,
        inputs=[contexts.output],
        inlets=[CONTEXTS],
        outlets=[PROMPTS],
    )
    train = DetachedStageOperator(
        task_id="train",
        stage="train",
        overrides=overrides,
        inputs=[prompts.output],
        inlets=[PROMPTS],
        outlets=[ADAPTER],
        **on_devices(TRAIN_POD),
        retries=5,  # a preempted or killed trainer goes on from its saved state
    )
    evaluate = StageOperator(
        task_id="evaluate",
        stage="evaluate",
        overrides=overrides,
        inputs=[train.output, prompts.output],
        inlets=[ADAPTER, PROMPTS],
        outlets=[EVALUATION],
        **on_devices(),  # for what was not answered before
        trigger_rule="none_failed",  # without shards the task before it is skipped
    )
    if overrides is None:
        parts = shards("evaluation")
        answer = StageOperator.partial(
            task_id="answer",
            stage="answer",
            inputs=[train.output, prompts.output],
            inlets=[ADAPTER, PROMPTS],
            **on_devices(),
        ).expand(arguments=parts)
        chain(train, parts, answer, evaluate)
    gate = StageOperator(
        task_id="gate",
        stage="gate",
        overrides=overrides,
        inputs=[evaluate.output],
        inlets=[EVALUATION],
        outlets=[VERDICT],
    )
    return Judged(train.output, evaluate.output, gate.output)


def register_and_promote(judged: Judged, overrides: Any = None, ends_well: bool = False) -> None:
    """Tasks ``register``, ``approval`` and ``promote`` of one adapter.

    Args:
      overrides: as of `train_and_judge`.
      ends_well: whether the form of the DAG begins with the settings of a run that came here.
    """
    register = StageOperator(
        task_id="register",
        stage="register",
        overrides=overrides,
        inputs=[judged.adapter, judged.evaluation, judged.verdict],
        inlets=[ADAPTER, EVALUATION, VERDICT],
        ends_well=ends_well,
    )
    approval = PromotionApproval(task_id="approval", registration=register.output, inlets=[VERDICT])
    PromoteOperator(
        task_id="promote",
        registration=register.output,
        approval=approval.output,
        inlets=[ADAPTER, VERDICT],
    )
