"""Work in parts on a fleet: what one worker has made, no other makes anew."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from jora_tasks import costs
from jora_tasks.airflow.client import AirflowClient
from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.costs import Cost
from jora_tasks.registry import Registry
from jora_tasks.shared_store import SharedStore
from tests.fleet.driving import (
    as_a_worker_has_it,
    connected,
    finished,
    logged_in,
    put_documents,
    require,
    start_worker,
)
from tests.fleet.topology import Fleet, fleet, wait
from tests.tiny import options, write_project

WORKERS = {"worker": ("worker", "worker-2"), "gpu-worker": ("gpu-worker", "gpu-worker-2")}
SHARDS = {"index": 4, "retrieval": 3, "evaluation": 2}
DOCUMENTS = 12  # and the guide

pytestmark = pytest.mark.slow


def write_config(folder: Path) -> Path:
    """The tiny project with more documents, all of its work in parts."""
    spec = write_project(folder)
    for number in range(DOCUMENTS):
        (folder / "documents" / f"{number}.md").write_text(f"# Part {number}\n\nzebra {number}\n")
    settings = json.loads(spec.read_text())
    settings["documents"]["path"] = "s3://jora/documents"
    settings["evaluation"]["batch_size"] = 2
    for section, shards in SHARDS.items():
        settings[section]["shards"] = shards
    spec.write_text(json.dumps(settings))
    return spec


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet with two workers of each kind, each with a home of its own."""
    require()
    with fleet(tmp_path_factory.mktemp("shards"), write_config) as made:
        with pytest.MonkeyPatch.context() as patch:
            put_documents(made, patch)
        for service, names in WORKERS.items():
            for name in names:
                start_worker(made, service, name)
        yield made


@pytest.fixture(scope="module")
def client(running: Fleet) -> Iterator[AirflowClient]:
    with connected(running) as made, logged_in(running) as session:
        slots = {"name": "gpu", "slots": 2, "description": "", "include_deferred": False}
        session.patch("/api/v2/pools/gpu", json=slots).raise_for_status()
        yield made


def worked(running: Fleet, service: str) -> dict[str, Counter[str]]:
    """Worker → the stages that ended in its home."""
    return {name: Counter(cost.stage for cost in records(running, name)) for name in WORKERS[service]}


def records(running: Fleet, name: str) -> list[Cost]:
    home = running.folder / name / "jora"
    lines = [line for month in costs.months(home) for line in costs.month_file(home, month).open("rb")]
    return [cost for line in lines if (cost := costs.parse(line))]


def made(store: ArtifactStore, kind: str) -> list[Artifact]:
    assert store.shared
    return [store.get(kind, key) for key in store.shared.listed("artifacts", kind)]


def test_what_one_worker_has_made_of_a_stage_no_other_makes_anew(
    running: Fleet, client: AirflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = client.trigger("document_index")["dag_run_id"]
    finished(client, "document_index", run_id, running)
    [run] = wait(lambda: client.dag_runs("adapter_training"), 120, "the run that the index starts")
    finished(client, "adapter_training", run["dag_run_id"], running)
    as_a_worker_has_it(running, monkeypatch)
    store = ArtifactStore(tmp_path)

    plain, devices = worked(running, "worker"), worked(running, "gpu-worker")
    print(json.dumps({**plain, **devices}, indent=2))
    assert all(each["embed"] for each in plain.values()) and all(each["answer"] for each in devices.values())
    total = sum((*plain.values(), *devices.values()), Counter())
    stages = {"corpus": 1, "embed": 4, "index": 1, "retrieve": 3, "contexts": 1, "prompts": 1, "train": 1}
    assert total == {**stages, "answer": 2, "evaluate": 1, "gate": 1, "register": 1}

    index, parts = store.latest("tiny", "index"), made(store, "embedded")
    assert index.counts["chunks"] == sum(part.counts["chunks_embedded"] for part in parts) > DOCUMENTS
    assert index.counts["chunks_embedded"] == 0
    retrieved = made(store, "retrieved")
    assert sum(part.counts["questions"] for part in retrieved) == len(options())
    every = [cost for names in WORKERS.values() for name in names for cost in records(running, name)]
    [contexts] = [cost for cost in every if cost.stage == "contexts"]
    assert contexts.read >= sum(size(part) for part in retrieved)  # all of them taken
    [evaluate] = [cost for cost in every if cost.stage == "evaluate"]
    assert evaluate.device_seconds == 0 and evaluate.hits >= 2 * SHARDS["evaluation"]
    assert sum(cost.device_seconds > 0 for cost in every if cost.stage == "answer") == 2
    answers = [part for part in made(store, "predictions") if "part" in part.manifest["settings"]]
    assert Counter(part.manifest["settings"]["part"]["shard"] for part in answers) == {0: 4, 1: 4}
    [version] = Registry(store.home).versions("tiny")
    assert version.digest == store.latest("tiny", "adapter").digest

    with logged_in(running) as session:  # by the API server, in whose home nothing ran
        page = session.get("/jora/costs").raise_for_status().text
    assert "4" in page and "of all machines" in page
    month = costs.shared_months(SharedStore(store.shared.url))[0]
    costs.fetch(tmp_path, store.shared, month)
    files = costs.copies(tmp_path, store.shared, month)
    seen = [cost.id for file in files for line in file.open("rb") if (cost := costs.parse(line))]
    assert sorted(seen) == sorted(cost.id for cost in every)


def size(artifact: Artifact) -> int:
    return sum(artifact.file(name).stat().st_size for name in artifact.manifest["files"])
