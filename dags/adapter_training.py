"""Index → contexts → prompts → adapter → evaluation → verdict → registered → champion, or by hand."""

from airflow.sdk import PartitionedAssetTimetable, dag

from jora_tasks.airflow import notices
from jora_tasks.airflow.assets import INDEX
from jora_tasks.airflow.operators import TASK_DEFAULTS
from jora_tasks.airflow.params import ADAPTER_TRAINING_SECTIONS, form_spec, spec_params
from jora_tasks.airflow.tasks import register_and_promote, retrieve_contexts, train_and_judge


@dag(
    schedule=PartitionedAssetTimetable(assets=INDEX),
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
    contexts = retrieve_contexts(event_input=INDEX)
    register_and_promote(train_and_judge(contexts), ends_well=True)


adapter_training()
