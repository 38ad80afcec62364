"""The whole chain by `dag.test()`: real stages, a tiny random model, real index and registry."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.lineage import trace
from jora_tasks.stages.pipeline import STAGES


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
    """Both DAGs run twice: the home, each time's last event of each stage, and OpenLineage's events."""

    home: Path
    ended: list[dict[str, dict[str, Any]]]
    told: list[dict[str, Any]]


@pytest.fixture(scope="module")
def chain(run_dag: Any, tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    home = tmp_path_factory.mktemp("chain") / "home"
    told = Path(os.environ["AIRFLOW_HOME"]) / "events.jsonl"
    told.unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JORA_HOME", str(home))
        patch.setenv("JORA_SPEC", str(tiny_project))
        ended = []
        for _ in range(2):
            assert run_dag("document_index").state == "success"
            assert run_dag("adapter_training", {"training.epochs": 2}).state == "success"
            ended.append(results(home, "document_index") | results(home, "adapter_training"))
        yield Chain(home, ended, [json.loads(line) for line in told.read_text().splitlines()])


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
        if event["eventType"] == "COMPLETE" and "." in event["job"]["name"]
        # says how many there are; skipped: nobody is asked
        if not event["job"]["name"].endswith((".shards", ".approval", ".promote"))
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
