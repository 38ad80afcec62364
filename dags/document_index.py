"""Documents → index, daily or by hand. The new index starts `adapter_training`."""

from datetime import timedelta

from airflow.sdk import CronTriggerTimetable, dag

from jora_tasks.airflow.assets import CORPUS, INDEX
from jora_tasks.airflow.operators import StageOperator
from jora_tasks.airflow.params import DOCUMENT_INDEX_SECTIONS, base_spec, spec_params


@dag(
    # No run merely because Airflow was started: without a start date the first is at the next 3:00.
    schedule=CronTriggerTimetable("0 3 * * *", timezone="UTC", run_immediately=timedelta(0)),
    catchup=False,
    max_active_runs=1,
    params=spec_params(DOCUMENT_INDEX_SECTIONS, base_spec()),
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["jora"],
    description=__doc__,
    doc_md=__doc__,
)
def document_index():
    corpus = StageOperator(task_id="corpus", stage="corpus", outlets=[CORPUS])
    StageOperator(
        task_id="index",
        stage="index",
        inputs=[corpus.output],
        inlets=[CORPUS],
        outlets=[INDEX],
    )


document_index()
