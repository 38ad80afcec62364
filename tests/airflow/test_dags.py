from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import CronTriggerTimetable, PartitionedAssetTimetable
from airflow.serialization.serialized_objects import DagSerialization

from jora_tasks.airflow.assets import CORPUS, INDEX
from jora_tasks.airflow.runs import progress_file, run_folder, spec_file
from jora_tasks.airflow.tasks import GPU_POD, TRAIN_POD
from jora_tasks.spec import load_spec
from jora_tasks.stages.pipeline import STAGES

ROOT = Path(__file__).parents[2]
HEAVY = {"jax", "torch", "faiss", "mlflow", "transformers", "sentence_transformers", "flax", "optax"}


@pytest.fixture(scope="module")
def dags(airflow_db) -> dict[str, Any]:
    bag = DagBag(str(ROOT / "dags"))
    assert bag.import_errors == {}
    return bag.dags


def returned(run: Any, task_id: str) -> Any:
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        value = session.scalar(
            select(XComModel.value).where(
                XComModel.dag_id == run.dag_id,
                XComModel.run_id == run.run_id,
                XComModel.task_id == task_id,
                XComModel.key == "return_value",
            )
        )
    return json.loads(value) if isinstance(value, str) else value


def test_the_dags_run_every_stage_once_in_order(dags):
    assert set(dags) == {"document_index", "adapter_training", "adapter_sweep"}
    tasks = [task for dag in (dags["document_index"], dags["adapter_training"]) for task in dag.tasks]
    assert [task.stage for task in tasks if hasattr(task, "stage")] == [*STAGES, "promote"]
    assert dags["document_index"].task_dict["index"].upstream_task_ids == {"corpus", "embed"}
    training = dags["adapter_training"]
    assert training.task_dict["evaluate"].upstream_task_ids == {"train", "prompts", "answer"}
    assert training.task_dict["answer"].upstream_task_ids == {"train", "prompts", "evaluation_shards"}
    assert training.task_dict["register"].upstream_task_ids == {"train", "evaluate", "gate"}
    for dag, first in ((training, set()), (dags["adapter_sweep"], {"variants"})):
        assert dag.task_dict["contexts"].upstream_task_ids == {"retrieve"}
        assert dag.task_dict["retrieve"].upstream_task_ids == {"retrieval_shards"}
        assert dag.task_dict["retrieval_shards"].upstream_task_ids == first


def test_tasks_on_a_device_ask_for_the_pod_that_has_one(airflow_db, monkeypatch):
    monkeypatch.setenv(GPU_POD, "/etc/jora-pods/gpu-pod.yaml")
    parsed = DagBag(str(ROOT / "dags")).dags["adapter_training"]
    dag = DagSerialization.from_dict(DagSerialization.to_dict(parsed))
    asked = {task.task_id: task.executor_config for task in dag.tasks if task.executor_config}
    pod = {"pod_template_file": "/etc/jora-pods/gpu-pod.yaml"}
    assert asked == {"train": pod, "answer": pod, "evaluate": pod}


def test_training_in_a_job_has_a_pod_of_its_own(airflow_db, monkeypatch):
    monkeypatch.setenv(TRAIN_POD, "/etc/jora-pods/launcher-pod.yaml")
    parsed = DagBag(str(ROOT / "dags")).dags["adapter_training"]
    asked = {task.task_id: task.executor_config for task in parsed.tasks if task.executor_config}
    assert asked == {"train": {"pod_template_file": "/etc/jora-pods/launcher-pod.yaml"}}


def test_runs_do_not_overlap_nor_catch_up(dags):
    for dag in dags.values():
        assert dag.max_active_runs == 1
        assert dag.catchup is False
        assert all(task.retry_delay <= timedelta(minutes=1) for task in dag.tasks)
        assert all(task.retry_policy is not None for task in dag.tasks)
        assert {task.retries for task in dag.tasks if getattr(task, "stage", "") != "train"} == {2}
    assert dags["adapter_training"].task_dict["train"].retries > 2  # each goes on from the saved state


def test_the_index_starts_training_and_not_itself(dags):
    schedule = dags["document_index"].timetable
    assert isinstance(schedule, CronTriggerTimetable)
    assert dags["document_index"].start_date is None
    started = dags["adapter_training"].timetable
    assert isinstance(started, PartitionedAssetTimetable)  # a run for each snapshot of the documents
    triggers = {started.asset_condition.uri}
    assert triggers == {INDEX.uri}
    outlets = {asset.uri for task in dags["adapter_training"].tasks for asset in task.outlets}
    assert not triggers & outlets
    assert dags["document_index"].task_dict["index"].outlets == [INDEX]


def test_assets_are_files_and_declared_on_both_sides(dags):
    for dag in (dags["document_index"], dags["adapter_training"]):
        for task in dag.tasks:
            made_ahead = ("retrieve", "embed", "answer")
            if task.task_id.endswith("_shards"):
                continue
            assert task.task_id == "corpus" or task.inlets
            assert task.task_id in ("register", "approval", "promote", *made_ahead) or task.outlets
            assert all(asset.uri.startswith("file:///") for asset in (*task.inlets, *task.outlets))
    assert CORPUS.uri.endswith("/artifacts/corpus")


def test_what_runs_the_model_and_nothing_else_takes_the_gpu(dags):
    places = {task.task_id: (task.pool, task.queue) for dag in dags.values() for task in dag.tasks}
    on_devices = {task for task, place in places.items() if place == ("gpu", "gpu")}
    assert on_devices == {"train", "answer", "evaluate", "variant.train", "variant.evaluate"}
    assert {places[task] for task in places.keys() - on_devices} == {("default_pool", "default")}


@pytest.mark.parametrize("name", ["document_index", "adapter_training", "adapter_sweep"])
def test_parsing_imports_nothing_heavy(name):
    code = (
        "import runpy, sys, time, airflow.sdk, airflow.models\n"
        "started = time.monotonic()\n"
        f"runpy.run_path({str(ROOT / 'dags' / f'{name}.py')!r})\n"
        "print(time.monotonic() - started)\n"
        f"print(*sorted({HEAVY!r} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = done.stdout.splitlines()[-2:]
    print(f"{name} parsed in {float(seconds):.2f} s")
    assert heavy == ""


def test_ruff_finds_no_outdated_airflow():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "AIR", "dags", "jora_tasks/airflow"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_keys_travel_from_task_to_task(run_dag: Callable[..., Any], home, echo):
    run = run_dag("adapter_training", {"training.epochs": 3}, echo)
    assert run.state == "success"
    tasks = ("contexts", "train", "evaluate", "gate", "register")
    options = {task: returned(run, task)["options"] for task in tasks}
    folder = run_folder(home, "adapter_training", run.run_id)
    given = ["--spec", str(spec_file(folder)), "--json"]
    assert options["contexts"] == given
    assert options["train"] == [*given, "--prompts", "promptskey"]
    assert options["evaluate"] == [*given, "--adapter", "trainkey", "--prompts", "promptskey"]
    assert options["gate"] == [*given, "--evaluation", "evaluatekey"]
    evaluated = ["--adapter", "trainkey", "--evaluation", "evaluatekey"]
    assert options["register"] == [*given, *evaluated, "--verdict", "gatekey"]
    assert load_spec(spec_file(folder)).training.epochs == 3


def test_each_variant_has_its_own_settings_and_the_chosen_one_is_registered(
    run_dag: Callable[..., Any], home, echo, monkeypatch
):
    monkeypatch.setattr("jora_tasks.airflow.sweep.score", lambda tried, *rest: tried["overrides"]["lora.r"])
    variants = [{"lora.r": 4}, {"lora.r": 16}, {"lora.r": 8}]
    run = run_dag("adapter_sweep", {"sweep": variants, "training.epochs": 3}, echo)
    assert run.state == "success"
    folder = run_folder(home, "adapter_sweep", run.run_id)
    specs = [load_spec(spec_file(folder, number)) for number in range(3)]
    assert [(spec.lora.r, spec.training.epochs) for spec in specs] == [(4, 3), (16, 3), (8, 3)]
    registered = returned(run, "register")["options"]
    assert load_spec(registered[1]).lora.r == 16
    assert registered[3:] == ["--adapter", "trainkey", "--evaluation", "evaluatekey", "--verdict", "gatekey"]


def test_a_sweep_with_a_variant_that_cannot_be_runs_no_stage(run_dag: Callable[..., Any], home, echo):
    run = run_dag("adapter_sweep", {"sweep": [{"lora.r": 4}, {"lora.r": -1}]}, echo)
    assert run.state == "failed"
    states = {task.task_id: task.state for task in run.get_task_instances()}
    assert (states["variants"], states["contexts"]) == ("failed", "upstream_failed")
    assert not (home / "runs").exists()


def test_a_stage_is_told_where_it_is_and_no_secret(run_dag: Callable[..., Any], home, echo, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "a-secret")
    run = run_dag("document_index", {"name": "papers"}, echo)
    environment = returned(run, "index")["environment"]
    assert environment["JORA_HOME"] == str(home)
    assert environment["JORA_PROGRESS"] == str(progress_file(run_folder(home, run.dag_id, run.run_id)))
    assert environment["JORA_AIRFLOW_RUN"] == f"document_index/{run.run_id}"
    assert not [name for name in environment if name.startswith("AIRFLOW")]


def test_bad_input_fails_the_first_task_with_its_sentence(run_dag: Callable[..., Any], home, echo):
    run = run_dag("document_index", {"index.chunk_overlap": 300}, echo)
    assert run.state == "failed"
    assert not run_folder(home, run.dag_id, run.run_id).exists()
    tasks = {task.task_id: task.state for task in run.get_task_instances()}
    assert tasks == {"corpus": "failed"} | dict.fromkeys(
        ("index_shards", "embed", "index"), "upstream_failed"
    )


def test_shards_are_embedded_by_tasks_of_their_own_before_the_index(run_dag, home, echo):
    run = run_dag("document_index", {"index.shards": 3}, echo)
    assert run.state == "success"
    tasks = [(task.task_id, task.map_index, task.state) for task in run.get_task_instances()]
    assert sorted(tasks) == [
        ("corpus", -1, "success"),
        *(("embed", number, "success") for number in range(3)),
        ("index", -1, "success"),
        ("index_shards", -1, "success"),
    ]


def test_without_shards_the_index_embeds_alone(run_dag, home, echo):
    run = run_dag("document_index", {}, echo)
    states = {task.task_id: task.state for task in run.get_task_instances()}
    assert states == {"corpus": "success", "index_shards": "success", "embed": "skipped", "index": "success"}


def test_shards_are_made_by_tasks_of_their_own_before_contexts_and_evaluation(run_dag, home, echo):
    run = run_dag("adapter_training", {"retrieval.shards": 2, "evaluation.shards": 3}, echo)
    assert run.state == "success"
    for task_id, shards in (("retrieve", 2), ("answer", 3)):
        made = [(task.map_index, task.state) for task in run.get_task_instances() if task.task_id == task_id]
        assert sorted(made) == [(number, "success") for number in range(shards)]


def test_without_shards_the_contexts_and_the_evaluation_work_alone(run_dag, home, echo):
    run = run_dag("adapter_training", {}, echo)
    states = {task.task_id: task.state for task in run.get_task_instances()}
    for section, ahead, stage in (
        ("retrieval", "retrieve", "contexts"),
        ("evaluation", "answer", "evaluate"),
    ):
        told = (states[f"{section}_shards"], states[ahead], states[stage])
        assert told == ("success", "skipped", "success")
    assert states["register"] == "success"
