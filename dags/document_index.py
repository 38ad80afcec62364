"""Documents → index: daily, when they change, or by hand. It starts `adapter_training`."""

from datetime import timedelta

from airflow.sdk import AssetOrTimeSchedule, CronTriggerTimetable, chain, dag

from jora_tasks.airflow import notices
from jora_tasks.airflow.assets import CORPUS, INDEX
from jora_tasks.airflow.operators import TASK_DEFAULTS, StageOperator
from jora_tasks.airflow.params import DOCUMENT_INDEX_SECTIONS, form_spec, spec_params
from jora_tasks.airflow.tasks import shards
from jora_tasks.airflow.watching import watched_documents

# No run merely because Airflow was started: without a start date the first is at the next 3:00.
DAILY = CronTriggerTimetable("0 3 * * *", timezone="UTC", run_immediately=timedelta(0))
DOCUMENTS = watched_documents()


@dag(
    schedule=AssetOrTimeSchedule(timetable=DAILY, assets=[DOCUMENTS]) if DOCUMENTS else DAILY,
    catchup=False,
    max_active_runs=1,
    params=spec_params(DOCUMENT_INDEX_SECTIONS, form_spec("document_index")),
    default_args=TASK_DEFAULTS,
    deadline=notices.deadline(),
    tags=["jora"],
    description=__doc__,
    doc_md=__doc__,
)
def document_index():
    inlets = [DOCUMENTS] if DOCUMENTS else []
    corpus = StageOperator(task_id="corpus", stage="corpus", inlets=inlets, outlets=[CORPUS])

    parts = shards("index")
    embed = StageOperator.partial(
        task_id="embed", stage="embed", inputs=[corpus.output], inlets=[CORPUS]
    ).expand(arguments=parts)
    index = StageOperator(
        task_id="index",
        stage="index",
        inputs=[corpus.output],
        inlets=[CORPUS],
        outlets=[INDEX],
        ends_well=True,
        trigger_rule="none_failed",  # without shards the task before it is skipped
    )
    chain(corpus, parts, embed, index)


document_index()
