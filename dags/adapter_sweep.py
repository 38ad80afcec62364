"""Variants of settings or base models, trained from the same contexts; the best is registered."""

from typing import Any

from airflow.sdk import dag, get_current_context, task, task_group

from jora_tasks.airflow import notices
from jora_tasks.airflow.connections import use_connections
from jora_tasks.airflow.operators import TASK_DEFAULTS, run_spec, run_variants
from jora_tasks.airflow.params import ADAPTER_TRAINING_SECTIONS, base_spec, spec_params
from jora_tasks.airflow.sweep import SWEEP, best_of, sweep_param
from jora_tasks.airflow.tasks import Judged, register_and_promote, retrieve_contexts, train_and_judge
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
        judged = train_and_judge(contexts, overrides)

        @task
        def tried(overrides, adapter, evaluation, verdict) -> dict[str, Any]:
            """What one variant came to."""
            return {"overrides": overrides, "adapter": adapter, "evaluation": evaluation, "verdict": verdict}

        return tried(overrides, judged.adapter, judged.evaluation, judged.verdict)

    @task(trigger_rule="all_done", multiple_outputs=True)
    def best(tried) -> dict[str, Any]:
        """The variant to register: one that failed does not keep the others from it."""
        use_connections()
        each = [tried] if isinstance(tried, dict) else list(tried or ())  # a single one comes as itself
        return dict(best_of(each, ArtifactStore(), run_spec(get_current_context())))

    given = variants()
    contexts = retrieve_contexts(after=given)
    chosen: Any = best(variant.expand(overrides=given))
    judged = Judged(chosen["adapter"], chosen["evaluation"], chosen["verdict"])
    register_and_promote(judged, chosen["overrides"])


adapter_sweep()
