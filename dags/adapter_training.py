"""Index → contexts → prompts → adapter → evaluation → verdict → registered → champion, or by hand."""

from airflow.sdk import dag

from jora_tasks.airflow import notices
from jora_tasks.airflow.approval import PromoteOperator, PromotionApproval
from jora_tasks.airflow.assets import ADAPTER, CONTEXTS, EVALUATION, INDEX, PROMPTS, VERDICT
from jora_tasks.airflow.detached import DetachedStageOperator
from jora_tasks.airflow.environment import GPU_POOL, GPU_QUEUE
from jora_tasks.airflow.operators import TASK_DEFAULTS, StageOperator
from jora_tasks.airflow.params import ADAPTER_TRAINING_SECTIONS, form_spec, spec_params


@dag(
    schedule=[INDEX],
    catchup=False,
    max_active_runs=1,
    params=spec_params(ADAPTER_TRAINING_SECTIONS, form_spec("adapter_training")),
    default_args=TASK_DEFAULTS,
    deadline=notices.deadline(),
    tags=["jora"],
    description=__doc__,
    doc_md=__doc__,
)
def adapter_training():
    contexts = StageOperator(
        task_id="contexts", stage="contexts", event_input=INDEX, inlets=[INDEX], outlets=[CONTEXTS]
    )
    prompts = StageOperator(
        task_id="prompts",
        stage="prompts",
        inputs=[contexts.output],
        inlets=[CONTEXTS],
        outlets=[PROMPTS],
    )
    train = DetachedStageOperator(
        task_id="train",
        stage="train",
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
        inputs=[train.output, prompts.output],
        inlets=[ADAPTER, PROMPTS],
        outlets=[EVALUATION],
    )
    gate = StageOperator(
        task_id="gate",
        stage="gate",
        inputs=[evaluate.output],
        inlets=[EVALUATION],
        outlets=[VERDICT],
    )
    register = StageOperator(
        task_id="register",
        stage="register",
        inputs=[train.output, evaluate.output, gate.output],
        inlets=[ADAPTER, EVALUATION, VERDICT],
        ends_well=True,
    )
    approval = PromotionApproval(task_id="approval", registration=register.output, inlets=[VERDICT])
    PromoteOperator(
        task_id="promote",
        registration=register.output,
        approval=approval.output,
        inlets=[ADAPTER, VERDICT],
    )


adapter_training()
