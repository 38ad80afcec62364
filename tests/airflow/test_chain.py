"""The whole chain by `dag.test()`: real stages, a tiny random model, real index and registry."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.lineage import trace
from jora_tasks.progress import Progress
from jora_tasks.registry import Registry
from jora_tasks.spec import load_spec
from jora_tasks.stages.evaluate import evaluate_adapter
from jora_tasks.stages.pipeline import STAGES
from tests.openlineage_spec import lineage_server, problems

DAGS = ("document_index", "adapter_training")


def results(home: Path, dag_id: str) -> dict[str, dict[str, Any]]:
    """Stage → its last event over the runs of a DAG, in the order of the runs."""
    last: dict[str, dict[str, Any]] = {}
    files = sorted(
        (home / "runs" / dag_id).glob("*/progress.jsonl"), key=lambda file: file.stat().st_mtime_ns
    )
    for file in files:
        for line in file.read_text().splitlines():
            event = json.loads(line)
            last[event["stage"]] = event
    return last


@dataclass(frozen=True)
class Chain:
    """Both DAGs run twice, the second time with an OpenLineage server that was not there before.

    Between them someone made version 1 champion by hand.

    Attributes:
      ended: each time's last event of each stage.
      told: OpenLineage's events as they were kept.
      taken: as the server took them.
    """

    home: Path
    documents: Path
    ended: list[dict[str, dict[str, Any]]]
    told: list[dict[str, Any]]
    taken: list[dict[str, Any]]


def all_events(file: Path) -> list[dict[str, Any]]:
    """What was told of four DAG runs; Airflow tells of a run's end from another process, a little later."""
    deadline = time.monotonic() + 120
    while True:
        events = [json.loads(line) for line in file.read_text().splitlines()]
        ends = [each for each in events if each["job"]["name"] in DAGS and each["eventType"] == "COMPLETE"]
        if len(ends) == 4:
            return events
        assert time.monotonic() < deadline, f"the ends of {len(ends)} DAG runs were told"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def chain(run_dag: Any, tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    home = tmp_path_factory.mktemp("chain") / "home"
    told = Path(os.environ["AIRFLOW_HOME"]) / "events.jsonl"
    for file in told.parent.glob("events.*"):
        file.unlink()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run_both() -> dict[str, dict[str, Any]]:
        assert run_dag("document_index").state == "success"
        assert run_dag("adapter_training", {"training.epochs": 2}).state == "success"
        return results(home, "document_index") | results(home, "adapter_training")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JORA_HOME", str(home))
        patch.setenv("JORA_SPEC", str(tiny_project))
        patch.setenv("OPENLINEAGE_URL", f"http://127.0.0.1:{port}")
        ended = [run_both()]
        Registry(home).promote("tiny", 1, by="anna", reason="the first")
        with lineage_server(port=port) as (_, taken):
            ended.append(run_both())
            kept = all_events(told)
            yield Chain(home, tiny_project.parent / "documents", ended, kept, taken)


@pytest.mark.slow
def test_documents_become_a_registered_adapter_and_then_nothing_is_left_to_do(chain: Chain) -> None:
    states = [{stage: event["state"] for stage, event in ended.items()} for ended in chain.ended]
    assert states == [dict.fromkeys(STAGES, "built"), dict.fromkeys(STAGES, "reused")]
    registered = chain.ended[-1]["register"]["fields"]
    assert (registered["name"], registered["version"]) == ("tiny", 1)

    store = ArtifactStore(chain.home)
    assert store.latest("tiny", "adapter").manifest["settings"]["training"]["epochs"] == 2
    report = json.loads(store.latest("tiny", "evaluation").file("report.json").read_text())
    assert report["arms"]["adapter_with_contexts"]["n"] == 6


@pytest.mark.slow
def test_the_trace_names_the_airflow_runs_and_every_document(chain: Chain) -> None:
    store = ArtifactStore(chain.home)
    tree = trace(store, store.latest("tiny", "adapter"))
    assert tree["airflow_run"].startswith("adapter_training/")
    contexts = tree["inputs"]["prompts"]["inputs"]["contexts"]
    corpus = contexts["inputs"]["index"]["inputs"]["corpus"]
    assert corpus["airflow_run"].startswith("document_index/")
    assert [document["document_id"] for document in corpus["documents"]] == ["guide.md"]


@pytest.mark.slow
def test_every_stage_tells_openlineage_what_it_read_and_wrote(chain: Chain) -> None:
    completed = {
        event["job"]["name"].partition(".")[2]: event
        for event in chain.told
        if event["eventType"] == "COMPLETE" and event["job"]["name"].partition(".")[2] in STAGES
    }
    assert set(completed) == set(STAGES)

    def versions(stage: str, side: str) -> dict[str, str]:
        return {
            dataset["name"].rpartition("artifacts/")[2]: dataset["facets"]["version"]["datasetVersion"]
            for dataset in completed[stage][side]
        }

    store = ArtifactStore(chain.home)
    before = {"index": "corpus", "contexts": "index", "prompts": "contexts", "train": "prompts"}
    for stage, kind in before.items():
        assert versions(stage, "inputs")[kind] == store.latest("tiny", kind).digest, stage
    assert versions("train", "outputs") == {"adapter": store.latest("tiny", "adapter").digest}
    assert versions("register", "inputs")["adapter"] == store.latest("tiny", "adapter").digest
    assert versions("gate", "inputs")["evaluation"] == store.latest("tiny", "evaluation").digest
    assert versions("register", "inputs")["verdict"] == store.latest("tiny", "verdict").digest
    assert versions("register", "outputs") == {"registered/tiny": "1"}


@pytest.mark.slow
def test_openlineage_events_are_valid_and_each_arrives_once_at_a_server_that_was_gone(chain: Chain) -> None:
    wrong = {problem for event in chain.told for problem in problems(event)}
    assert not wrong
    taken = [{key: value for key, value in event.items() if key != "authorization"} for event in chain.taken]
    assert taken == chain.told


@pytest.mark.slow
def test_openlineage_events_are_one_chain_from_the_documents_to_the_champion(chain: Chain) -> None:
    def places(event: dict[str, Any], side: str) -> set[tuple[str, str, str]]:
        return {
            (each["namespace"], each["name"], each["facets"]["version"]["datasetVersion"])
            for each in event.get(side, [])
            if "version" in each.get("facets", {})
        }

    complete = [event for event in chain.told if event["eventType"] == "COMPLETE"]
    ((start,),) = {
        tuple(places(event, "inputs"))
        for event in complete
        if event["job"]["name"] == "document_index.corpus"
    }
    store = ArtifactStore(chain.home)
    corpus = store.latest("tiny", "corpus").manifest["inputs"]["documents"]
    assert start == ("file", str(chain.documents), corpus["digest"])

    reached, before = {start}, set[tuple[str, str, str]]()
    while reached != before:
        before = set(reached)
        for event in complete:
            if places(event, "inputs") & reached:
                reached |= places(event, "outputs")
    kinds = ("corpus", "index", "contexts", "prompts", "adapter", "evaluation", "verdict")
    artifacts = {
        ("file", str(chain.home / "artifacts" / kind), store.latest("tiny", kind).digest) for kind in kinds
    }
    assert reached == {start, *artifacts, ("jora", "registered/tiny", "1"), ("jora", "champion/tiny", "1")}


@pytest.mark.slow
def test_all_that_is_made_of_a_corpus_is_of_its_partition(chain: Chain) -> None:
    """In Airflow's asset events and in OpenLineage: the partition is the corpus's digest."""
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    store = ArtifactStore(chain.home)
    corpus = store.latest("tiny", "corpus").digest
    kinds = ("corpus", "index", "contexts", "prompts", "adapter", "evaluation", "verdict")
    made = {(kind, store.latest("tiny", kind).digest) for kind in kinds}
    with create_session() as session:  # whose database other tests' runs have told of theirs
        events = session.execute(
            select(AssetModel.name, AssetEvent.partition_key, AssetEvent.extra).join(
                AssetModel, AssetModel.id == AssetEvent.asset_id
            )
        )
        told = [
            (name, key, extra["snapshot"])
            for name, key, extra in events
            if (name, extra.get("digest")) in made
        ]
    assert set(told) == {(kind, corpus, corpus) for kind in kinds}
    assert len(told) >= 2 * len(kinds)

    written = {
        Path(output["name"]).name: output["outputFacets"]["subset"]["outputCondition"]["partitions"]
        for event in chain.told
        if event["eventType"] == "COMPLETE"
        for output in event["outputs"]
        if output["namespace"] == "file" and "subset" in output.get("outputFacets", {})
    }
    partition = {"dimensions": {"snapshot": corpus}, "identifier": corpus}
    assert written == {kind: [partition] for kind in kinds}


@pytest.mark.slow
def test_openlineage_events_tell_statistics_parents_and_the_gates_assertions(chain: Chain) -> None:
    by_job = {event["job"]["name"]: event for event in chain.told if event["eventType"] == "COMPLETE"}
    store = ArtifactStore(chain.home)
    tasks = {name: event for name, event in by_job.items() if name.partition(".")[2] in STAGES}
    assert set(STAGES) == {name.partition(".")[2] for name in tasks}
    for name, event in tasks.items():
        parent = event["run"]["facets"]["parent"]
        assert parent["job"]["name"] == name.partition(".")[0]
        assert parent["run"]["runId"] == by_job[parent["job"]["name"]]["run"]["runId"]
    (index,) = tasks["document_index.index"]["outputs"]
    assert (
        index["outputFacets"]["outputStatistics"]["rowCount"]
        == store.latest("tiny", "index").counts["chunks"]
    )
    checks = json.loads(store.latest("tiny", "verdict").file("verdict.json").read_text())["checks"]
    (judged,) = tasks["adapter_training.gate"]["inputs"]
    assertions = judged["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert [(each["name"], each["success"]) for each in assertions] == [
        (check["name"], check["passed"]) for check in checks
    ]
    (move,) = [event for event in chain.told if event["job"]["name"] == "jora.promote"]
    assert {"key": "by", "value": "anna", "source": "jora"} in move["run"]["facets"]["tags"]["tags"]


@pytest.mark.slow
def test_an_index_embedded_in_shards_is_that_of_one_task(
    run_dag: Any, tiny_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JORA_SPEC", str(tiny_project))
    made = []
    for shards in (1, 2):
        monkeypatch.setenv("JORA_HOME", str(tmp_path / str(shards)))
        assert run_dag("document_index", {"index.shards": shards}).state == "success"
        made.append(ArtifactStore(tmp_path / str(shards)).latest("tiny", "index"))
    alone, sharded = made
    assert alone.counts["chunks_embedded"] == alone.counts["chunks"] > 0
    assert sharded.counts["chunks_embedded"] == 0
    assert sharded.digest == alone.digest


@pytest.mark.slow
def test_an_evaluation_answered_in_shards_is_that_of_one_process(
    chain: Chain, run_dag: Any, tiny_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in a home that has the chain's adapter, and neither answers nor a champion."""
    left = shutil.ignore_patterns("predictions", "evaluation", "mlflow", "runs")
    homes = [Path(shutil.copytree(chain.home, tmp_path / name, ignore=left)) for name in ("tasks", "alone")]
    monkeypatch.delenv("OPENLINEAGE_URL")
    monkeypatch.setenv("JORA_SPEC", str(tiny_project))
    monkeypatch.setenv("JORA_HOME", str(homes[0]))
    settings = {"training.epochs": 2, "evaluation.batch_size": 2}
    run = run_dag("adapter_training", {**settings, "evaluation.shards": 2})
    assert run.state == "success"
    tasks = [(task.map_index, task.state) for task in run.get_task_instances() if task.task_id == "answer"]
    assert sorted(tasks) == [(0, "success"), (1, "success")]
    ended = results(homes[0], "adapter_training")
    assert (ended["train"]["state"], ended["answer"]["state"]) == ("reused", "built")

    joined, store = ArtifactStore(homes[0]).latest("tiny", "evaluation"), ArtifactStore(homes[1])
    spec = load_spec(tiny_project, tuple(f"{name}={value}" for name, value in settings.items()))
    adapter, prompts = (store.latest("tiny", kind) for kind in ("adapter", "prompts"))
    alone = evaluate_adapter(spec, adapter, prompts, store, Progress())
    assert (joined.key, joined.digest) == (alone.key, alone.digest)
    parts = (homes[0] / "artifacts" / "predictions").glob("*/manifest.json")
    cuts = [json.loads(file.read_text())["settings"].get("part") for file in parts]
    assert sorted(cut["shard"] for cut in cuts if cut) == [0] * 4 + [1] * 4  # of each arm
