"""Documents → index: daily, when they change, or by hand. It starts `adapter_training`."""

from datetime import timedelta
from typing import Any

from airflow.sdk import AssetOrTimeSchedule, CronTriggerTimetable, chain, dag, task

from jora_tasks.airflow.assets import CORPUS, INDEX
from jora_tasks.airflow.failures import RETRY_POLICY
from jora_tasks.airflow.operators import StageOperator
from jora_tasks.airflow.params import DOCUMENT_INDEX_SECTIONS, base_spec, spec_params
from jora_tasks.airflow.watching import watched_documents

# No run merely because Airflow was started: without a start date the first is at the next 3:00.
DAILY = CronTriggerTimetable("0 3 * * *", timezone="UTC", run_immediately=timedelta(0))
DOCUMENTS = watched_documents()


@dag(
    schedule=AssetOrTimeSchedule(timetable=DAILY, assets=[DOCUMENTS]) if DOCUMENTS else DAILY,
    catchup=False,
    max_active_runs=1,
    params=spec_params(DOCUMENT_INDEX_SECTIONS, base_spec()),
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10), "retry_policy": RETRY_POLICY},
    tags=["jora"],
    description=__doc__,
    doc_md=__doc__,
)
def document_index():
    inlets = [DOCUMENTS] if DOCUMENTS else []
    corpus = StageOperator(task_id="corpus", stage="corpus", inlets=inlets, outlets=[CORPUS])

    @task
    def shards(params: dict[str, Any] | None = None) -> list[list[str]]:
        """Options of each part that is embedded ahead of the index; none where the index embeds alone."""
        count = (params or {})["index.shards"]
        return [["--shard", str(shard)] for shard in range(count)] if count > 1 else []

    parts = shards()
    embed = StageOperator.partial(
        task_id="embed", stage="embed", inputs=[corpus.output], inlets=[CORPUS]
    ).expand(arguments=parts)
    index = StageOperator(
        task_id="index",
        stage="index",
        inputs=[corpus.output],
        inlets=[CORPUS],
        outlets=[INDEX],
        trigger_rule="none_failed",  # without shards the task before it is skipped
    )
    chain(corpus, parts, embed, index)


document_index()
