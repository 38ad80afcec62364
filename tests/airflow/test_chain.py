"""The whole chain by `dag.test()`: real stages, a tiny random model, real index and registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.lineage import trace


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


@pytest.mark.slow
def test_documents_become_a_registered_adapter_and_then_nothing_is_left_to_do(
    run_dag: Any, home: Path, tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JORA_SPEC", str(tiny_project))
    for state in ("built", "reused"):
        assert run_dag("document_index").state == "success"
        assert run_dag("adapter_training", {"training.epochs": 2}).state == "success"
        ended = results(home, "document_index") | results(home, "adapter_training")
        assert {stage: event["state"] for stage, event in ended.items()} == dict.fromkeys(
            ("corpus", "index", "contexts", "prompts", "train", "evaluate", "register"), state
        )
    registered = ended["register"]["fields"]
    assert (registered["name"], registered["version"]) == ("tiny", 1)

    store = ArtifactStore(home)
    adapter = store.latest("tiny", "adapter")
    assert adapter.manifest["settings"]["training"]["epochs"] == 2
    report = json.loads(store.latest("tiny", "evaluation").file("report.json").read_text())
    assert report["arms"]["adapter_with_contexts"]["n"] == 6

    tree = trace(store, adapter)
    assert tree["airflow_run"].startswith("adapter_training/")
    contexts = tree["inputs"]["prompts"]["inputs"]["contexts"]
    corpus = contexts["inputs"]["index"]["inputs"]["corpus"]
    assert corpus["airflow_run"].startswith("document_index/")
    assert [document["document_id"] for document in corpus["documents"]] == ["guide.md"]


@pytest.mark.slow
def test_every_stage_tells_openlineage_what_it_read_and_wrote(
    run_dag: Any, home: Path, tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    events_file = Path(os.environ["AIRFLOW_HOME"]) / "events.jsonl"
    events_file.unlink(missing_ok=True)
    monkeypatch.setenv("JORA_SPEC", str(tiny_project))
    run_dag("document_index")
    run_dag("adapter_training")
    completed = {}
    for line in events_file.read_text().splitlines():
        event = json.loads(line)
        if event["eventType"] == "COMPLETE" and "." in event["job"]["name"]:
            completed[event["job"]["name"].partition(".")[2]] = event
    assert set(completed) == {"corpus", "index", "contexts", "prompts", "train", "evaluate", "register"}

    def versions(stage: str, side: str) -> dict[str, str]:
        return {
            dataset["name"].rpartition("artifacts/")[2]: dataset["facets"]["version"]["datasetVersion"]
            for dataset in completed[stage][side]
        }

    store = ArtifactStore(home)
    before = {"index": "corpus", "contexts": "index", "prompts": "contexts", "train": "prompts"}
    for stage, kind in before.items():
        assert versions(stage, "inputs")[kind] == store.latest("tiny", kind).digest, stage
    assert versions("train", "outputs") == {"adapter": store.latest("tiny", "adapter").digest}
    assert versions("register", "inputs")["adapter"] == store.latest("tiny", "adapter").digest
    assert versions("register", "outputs") == {"registered/tiny": "1"}
