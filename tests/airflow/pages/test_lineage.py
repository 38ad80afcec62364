"""The lineage tab: what a run made, found and used; what is to come, failed or gone."""

from __future__ import annotations

import json
import re
import shutil
import sys
from datetime import UTC, datetime

import pytest
from sqlalchemy import delete, update

from jora_tasks.airflow.pages.progress import read_progress
from jora_tasks.airflow.runs import progress_file, run_folder
from jora_tasks.registry import Registry
from tests.lines import RUN, SCRIPT

DAG = "adapter_training"
STAGES = {"contexts": "contexts", "prompts": "prompts", "train": "adapter", "evaluate": "evaluation"}


@pytest.fixture
def airflow_run(server):
    """Makes runs that Airflow knows; gone afterwards."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    made = []

    def make(state: str, run_id: str = "manual__1", dag_id: str = DAG) -> str:
        now = datetime.now(UTC)
        with create_session() as session:
            facts = {"run_type": "manual", "state": state, "run_after": now, "start_date": now}
            session.add(DagRun(dag_id=dag_id, run_id="manual__new", **facts))
            session.flush()
            # Airflow refuses ids that attack a page, unless it was told to take others: not by an update.
            session.execute(update(DagRun).where(DagRun.run_id == "manual__new").values(run_id=run_id))
        made.append(run_id)
        return run_id

    yield make
    with create_session() as session:
        session.execute(delete(DagRun).where(DagRun.run_id.in_(made)))


@pytest.fixture
def look(uma):
    return lambda run_id, dag_id=DAG: uma.get("/jora/lineage", params={"dag_id": dag_id, "run_id": run_id})


def say(store, run_id: str, *events: dict, dag_id: str = DAG) -> None:
    """What stages write as they work."""
    file = progress_file(run_folder(store.home, dag_id, run_id))
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lines:
        for event in events:
            lines.write(json.dumps({"done": None, "total": None, "unit": "", "fields": {}, **event}) + "\n")


def states(page: str) -> dict[str, str]:
    """Kind's name → state, of the graph's boxes."""
    boxes = re.findall(r'<(?:a|g) class="node ([\w-]+)"[^>]*aria-label="([^",]+)', page)
    return {name: state for state, name in boxes}


def finished(newest, state: str = "built") -> list[dict]:
    return [
        {"stage": stage, "state": state, "fields": {"seconds": 1.0, "key": newest(kind).key}}
        for stage, kind in {**STAGES, "gate": "verdict"}.items()
    ]


REGISTERED = {
    "stage": "register",
    "state": "built",
    "fields": {"name": "tiny", "version": 3, "alias": "candidate"},
}


def test_a_run_that_airflow_does_not_know(look):
    answer = look("none")
    assert answer.status_code == 404 and "no run none" in answer.text


def test_before_anything_is_made_the_page_says_what_comes(look, airflow_run):
    page = look(airflow_run("queued")).text
    assert "has not made anything yet" in page and 'data-refresh="3"' in page
    assert set(states(page).values()) == {"to-come"}
    assert "Still to come: Documents, Corpus" in page


def test_while_a_stage_works_its_progress_is_told(look, airflow_run, store, newest):
    run_id = airflow_run("running")
    events = finished(newest)[:2]
    say(
        store,
        run_id,
        *events,
        {"stage": "train", "state": "running", "done": 12, "total": 1050, "unit": "steps"},
    )
    page = look(run_id).text
    assert states(page)["Prompts"] == "built" and states(page)["Adapter"] == "running"
    assert states(page)["Corpus"] == "earlier" and states(page)["Documents"] == "source"
    assert "12 of 1,050 steps" in page and states(page)["Evaluation"] == "to-come"


def test_a_finished_run_with_all_that_it_made_and_used(look, airflow_run, store, newest):
    run_id = airflow_run("success")
    say(store, run_id, *finished(newest), REGISTERED)
    page = look(run_id).text
    found = states(page)
    assert {found[name] for name in ("Contexts", "Adapter", "Verdict", "Version")} == {"built"}
    assert found["Champion"] == "none"
    adapter = newest("adapter")
    assert f'href="/jora/artifacts/adapter/{adapter.key}"' in page and adapter.digest in page
    assert "10 steps" in page and 'data-refresh=""' in page
    assert 'href="/jora/adapters/tiny/versions/3"' in page
    assert f"/dags/{RUN.replace('/', '/runs/', 1)}" in page  # who made what was there before

    registry = Registry(store.home)
    registry.promote("tiny", 3, by="uma", reason="r")
    page = look(run_id).text
    assert states(page)["Champion"] == "made" and "by uma" in page
    registry.promote("tiny", 1, by="ulf", reason="r")
    assert states(look(run_id).text)["Champion"] == "earlier"


def test_what_was_found_again_belongs_to_the_run(look, airflow_run, store, newest):
    run_id = airflow_run("success")
    say(store, run_id, *finished(newest, "reused"))
    found = states(look(run_id).text)
    assert {found[name] for name in ("Contexts", "Prompts", "Adapter", "Evaluation", "Verdict")} == {"reused"}


def test_several_adapters_of_one_run_are_all_listed(look, airflow_run, store, newest):
    run_id = airflow_run("success")
    keys = sorted(folder.name for folder in (store.home / "artifacts" / "adapter").iterdir())
    say(store, run_id, *({"stage": "train", "state": "built", "fields": {"key": key}} for key in keys))
    page = look(run_id).text
    assert len(keys) == 3 and all(f'href="/jora/artifacts/adapter/{key}"' in page for key in keys)


def test_a_stage_that_failed_and_what_was_never_reached(look, airflow_run, store, newest):
    run_id = airflow_run("failed")
    failed = {"stage": "train", "state": "failed", "fields": {"reason": f"Error{SCRIPT}"}}
    say(store, run_id, *finished(newest)[:2], failed)
    page = look(run_id).text
    assert states(page)["Adapter"] == "failed" and states(page)["Verdict"] == "not-made"
    assert "Error&lt;script&gt;" in page and "Still to come" not in page


def test_a_failed_task_is_named_with_a_link_to_its_log(look, server, store, run_dag, script):
    run = run_dag("document_index", command=script("import sys; sys.exit(3)"))
    page = look(run.run_id, "document_index").text
    assert "Task <b>corpus</b>" in page and "clear the task" in page
    assert f'href="/dags/document_index/runs/{run.run_id}/tasks/corpus" data-airflow' in page
    assert set(states(page)) == {"Documents", "Corpus", "Index"}


def test_a_run_whose_progress_is_lost_is_found_through_the_manifests(look, airflow_run, store):
    run_id = airflow_run("success", RUN.partition("/")[2])
    found = states(look(run_id).text)
    assert found["Adapter"] == found["Corpus"] == "built" and found["Version"] == "not-made"


def test_artifacts_that_were_removed_are_told_with_what_to_do(look, airflow_run, uma, store, newest):
    run_id = airflow_run("success")
    say(store, run_id, *finished(newest), REGISTERED)
    for kind in ("index", "adapter"):
        shutil.rmtree(newest(kind).path)
    page = look(run_id).text
    assert states(page)["Index"] == states(page)["Adapter"] == "not-here"
    assert "Index, Adapter: no longer in this home" in page and "makes it again" in page
    version = uma.get("/jora/adapters/tiny/versions/3").text
    assert "trail to the documents is lost" in version and "no longer in this home" in version
    nothing = look(airflow_run("success", "manual__2")).text
    assert "Nothing is known of what this run made" in nothing and "Trigger adapter_training again" in nothing


def test_without_a_registry_that_answers_the_graph_is_shown_all_the_same(look, airflow_run, store, newest):
    run_id = airflow_run("success")
    say(store, run_id, *finished(newest), REGISTERED)
    (store.home / "mlflow" / "mlflow.db").write_text("no database")
    page = look(run_id).text
    assert "No registry answers" in page and states(page)["Adapter"] == "built"


def test_run_ids_cannot_lead_out_of_the_runs(look, airflow_run, store, newest):
    run_id = airflow_run("success", f"../../{SCRIPT}")
    say(store, "other", *finished(newest))
    answer = look(run_id)
    assert answer.status_code == 200 and "Nothing is known" in answer.text and SCRIPT not in answer.text


def test_of_many_steps_only_the_last_is_read(tmp_path):
    file = tmp_path / "progress.jsonl"
    step = {"stage": "train", "state": "running"}
    lines = [json.dumps({**step, "done": done}) for done in range(5000)]
    file.write_text("\n".join([*lines, '{"stage": "train", "st']))
    assert read_progress(file).last["train"]["done"] == 4999
    assert read_progress(tmp_path / "none").last == {}


def test_the_plugin_is_light():
    """Every process of Airflow imports it."""
    import subprocess

    program = (
        "import sys, airflow.plugins_manager; before = set(sys.modules)\n"
        "import jora_tasks.airflow.pages.plugin\n"
        "names = {'fastapi', 'mlflow', 'jinja2', 'jax', 'pyarrow'}\n"
        "heavy = names & (set(sys.modules) - before)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_plugin_is_told_of_once():
    """Of a plugin that is there twice, Airflow 3.3.2 leaves out all that come after, OpenLineage's too."""
    from importlib.metadata import distributions

    found = [
        str(each.locate_file("")) for each in distributions() if each.entry_points.select(name="jora_pages")
    ]
    assert len(found) == 1, f"remove jora_tasks.egg-info: {found}"
