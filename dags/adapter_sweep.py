"""Variants of settings or base models, trained from the same contexts; the best is registered."""

from typing import Any

from airflow.sdk import chain, dag, get_current_context, task, task_group

from jora_tasks.airflow import notices
from jora_tasks.airflow.approval import PromoteOperator, PromotionApproval
from jora_tasks.airflow.assets import ADAPTER, CONTEXTS, EVALUATION, INDEX, PROMPTS, VERDICT
from jora_tasks.airflow.detached import DetachedStageOperator
from jora_tasks.airflow.environment import GPU_POOL, GPU_QUEUE
from jora_tasks.airflow.operators import TASK_DEFAULTS, StageOperator, run_spec, run_variants
from jora_tasks.airflow.params import ADAPTER_TRAINING_SECTIONS, base_spec, spec_params
from jora_tasks.airflow.sweep import SWEEP, best_of, sweep_param
from jora_tasks.artifacts import ArtifactStore


@dag(
    schedule=None,
    max_active_runs=1,
    params=spec_params(ADAPTER_TRAINING_SECTIONS, base_spec()) | {SWEEP: sweep_param()},
    default_args=TASK_DEFAULTS,
    deadline=notices.deadline(),
    tags=["jora"],
    description=__doc__,
    doc_md=__doc__,
)
def adapter_sweep():
    @task
    def variants() -> list[dict[str, Any]]:
        """The settings of each variant; refuses what cannot be before any stage runs."""
        return run_variants(get_current_context())

    @task_group
    def variant(overrides):
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
            pool=GPU_POOL,
            queue=GPU_QUEUE,
            retries=5,  # a preempted or killed trainer goes on from its saved state
        )
        evaluate = StageOperator(
            task_id="evaluate",
            stage="evaluate",
            overrides=overrides,
            inputs=[train.output, prompts.output],
            inlets=[ADAPTER, PROMPTS],
            outlets=[EVALUATION],
        )
        gate = StageOperator(
            task_id="gate",
            stage="gate",
            overrides=overrides,
            inputs=[evaluate.output],
            inlets=[EVALUATION],
            outlets=[VERDICT],
        )

        @task
        def tried(overrides, adapter, evaluation, verdict) -> dict[str, Any]:
            """What one variant came to."""
            return {"overrides": overrides, "adapter": adapter, "evaluation": evaluation, "verdict": verdict}

        return tried(overrides, train.output, evaluate.output, gate.output)

    @task(trigger_rule="all_done", multiple_outputs=True)
    def best(tried) -> dict[str, Any]:
        """The variant to register: one that failed does not keep the others from it."""
        each = [tried] if isinstance(tried, dict) else list(tried or ())  # a single one comes as itself
        return dict(best_of(each, ArtifactStore(), run_spec(get_current_context())))

    given = variants()
    contexts = StageOperator(task_id="contexts", stage="contexts", inlets=[INDEX], outlets=[CONTEXTS])
    chain(given, contexts)
    chosen: Any = best(variant.expand(overrides=given))
    register = StageOperator(
        task_id="register",
        stage="register",
        overrides=chosen["overrides"],
        inputs=[chosen["adapter"], chosen["evaluation"], chosen["verdict"]],
        inlets=[ADAPTER, EVALUATION, VERDICT],
    )
    approval = PromotionApproval(task_id="approval", registration=register.output, inlets=[VERDICT])
    PromoteOperator(
        task_id="promote", registration=register.output, approval=approval.output, inlets=[ADAPTER, VERDICT]
    )


adapter_sweep()
