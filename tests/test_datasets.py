"""OpenLineage's datasets over a small chain of real artifacts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jora_tasks.artifacts import Artifact, ArtifactStore, Source, artifacts_place
from jora_tasks.datasets import datasets, move_datasets, registration_datasets
from jora_tasks.evaluation.gate import check
from jora_tasks.lineage import trace
from tests.chain import DOCUMENTS, build, make_adapter
from tests.openlineage_spec import problems


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home")


@pytest.fixture
def adapter(store: ArtifactStore) -> Artifact:
    return make_adapter(store)


def test_datasets_keep_their_name_and_change_their_version(store: ArtifactStore) -> None:
    source = Source("documents", "guide", "sha256:d")
    first = build(store, "corpus", {"documents": source}, "documents.parquet", DOCUMENTS)
    second = build(store, "corpus", {"documents": source}, "documents.parquet", DOCUMENTS[:5])
    assert first.key == second.key  # the same settings and inputs
    second = build(store, "corpus", {"documents": source}, "documents.parquet", DOCUMENTS[:5], other=1)
    (inputs, [one]), (_, [two]) = datasets(store, first), datasets(store, second)
    assert (one.namespace, one.name) == ("file", str(store.home / "artifacts" / "corpus"))
    assert (two.namespace, two.name) == (one.namespace, one.name)
    assert one.facets["version"].datasetVersion == first.digest
    assert two.facets["version"].datasetVersion == second.digest
    assert (one.outputFacets["outputStatistics"].rowCount, two.outputFacets["outputStatistics"].rowCount) == (
        12,
        5,
    )
    assert one.outputFacets["outputStatistics"].fileCount == 1
    assert one.outputFacets["outputStatistics"].size == first.file("documents.parquet").stat().st_size
    assert [(each.namespace, each.name) for each in inputs] == [("jora", "documents/guide")]
    assert inputs[0].facets["version"].datasetVersion == "sha256:d"


def test_one_stages_output_is_the_next_ones_input(store: ArtifactStore, adapter: Artifact) -> None:
    prompts = store.get("prompts", adapter.manifest["inputs"]["prompts"]["key"])
    inputs, [output] = datasets(store, adapter)
    _, [made] = datasets(store, prompts)
    used = inputs[0]
    assert (used.namespace, used.name) == (made.namespace, made.name)
    assert used.facets["version"].datasetVersion == made.facets["version"].datasetVersion
    assert output.facets["datasetType"].datasetType == "MODEL"
    assert output.facets["documentation"].description
    assert output.outputFacets["outputStatistics"].rowCount is None


def test_a_registration_reads_the_adapter_and_writes_a_version(
    store: ArtifactStore, adapter: Artifact
) -> None:
    inputs, (output,) = registration_datasets(store, [adapter], "handbook", 3)
    (_, (written,)) = datasets(store, adapter)
    assert [(each.namespace, each.name) for each in inputs] == [(written.namespace, written.name)]
    assert inputs[0].facets["version"].datasetVersion == adapter.digest
    assert (output.namespace, output.name) == ("jora", "registered/handbook")
    assert output.facets["version"].datasetVersion == "3"


def test_an_event_of_the_datasets_is_valid(store: ArtifactStore, adapter: Artifact) -> None:
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
    from openlineage.client.serde import Serde
    from openlineage.client.uuid import generate_new_uuid

    inputs, outputs = datasets(store, adapter)
    event = RunEvent(
        eventType=RunState.COMPLETE,
        eventTime="2026-01-01T00:00:00Z",
        run=Run(runId=str(generate_new_uuid())),
        job=Job(namespace="jora", name="train"),
        inputs=inputs,
        outputs=outputs,
    )
    told = json.loads(Serde.to_json(event))
    assert told["outputs"][0]["facets"]["version"]["datasetVersion"] == adapter.digest
    assert {each["name"] for each in told["inputs"]} == {
        str(store.home / "artifacts" / "prompts"),
        "model/tiny-base",
    }


def test_answers_kept_within_an_evaluation_are_no_input_of_it(
    store: ArtifactStore, adapter: Artifact
) -> None:
    predictions = build(store, "predictions", {"adapter": adapter}, "predictions.parquet")
    evaluation = build(store, "evaluation", {"adapter": adapter, "arm": predictions}, "predictions.parquet")
    inputs, _ = datasets(store, evaluation)
    assert [each.name for each in inputs] == [str(store.home / "artifacts" / "adapter")]
    assert trace(store, evaluation)["inputs"]["arm"]["kind"] == "predictions"


def event(inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
    from openlineage.client.serde import Serde
    from openlineage.client.uuid import generate_new_uuid

    made = RunEvent(
        eventType=RunState.COMPLETE,
        eventTime="2026-01-01T00:00:00Z",
        run=Run(runId=str(generate_new_uuid())),
        job=Job(namespace="jora", name="gate"),
        inputs=inputs,
        outputs=outputs,
    )
    return json.loads(Serde.to_json(made))


def test_a_verdicts_checks_are_assertions_on_its_evaluation(store: ArtifactStore, adapter: Artifact) -> None:
    evaluation = build(store, "evaluation", {"adapter": adapter}, "predictions.parquet")
    checks = [
        check("enough_questions", "at least 20", "80", True),
        check("exact_match_better_than_base", "above 0", "-0.1 to 0.2", False),
        check("f1_no_worse_than_champion", "above -0.02", "0.0", True),
    ]

    def write(folder: Path) -> dict[str, Any]:
        (folder / "verdict.json").write_text(json.dumps({"checks": checks}))
        return {}

    verdict = store.build("verdict", version=1, settings={}, inputs={"evaluation": evaluation}, write=write)
    told = event(*datasets(store, verdict))
    assert problems(told) == []
    (read,) = told["inputs"]
    assert read["facets"]["version"]["datasetVersion"] == evaluation.digest
    assert read["inputFacets"]["inputStatistics"]["rowCount"] == 2
    assertions = read["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert [
        (each["name"], each["success"], each["expected"], each["actual"], each.get("column"))
        for each in assertions
    ] == [
        ("enough_questions", True, "at least 20", "80", None),
        ("exact_match_better_than_base", False, "above 0", "-0.1 to 0.2", "exact_match"),
        ("f1_no_worse_than_champion", True, "above -0.02", "0.0", "f1"),
    ]


@pytest.mark.parametrize(
    ("path", "namespace", "name"),
    [
        ("/srv/handbook", "file", "/srv/handbook"),
        ("s3://bucket/team/handbook/", "s3://bucket", "team/handbook"),
        ("s3://bucket", "s3://bucket", "/"),
        ("sftp://user:secret@host/docs", "sftp://host", "docs"),
    ],
)
def test_documents_are_where_they_lie(path: str, namespace: str, name: str, store: ArtifactStore) -> None:
    source = Source("documents", "handbook", "sha256:d")
    corpus = build(store, "corpus", {"documents": source}, "documents.parquet", DOCUMENTS)
    told = event(*datasets(store, corpus, path))
    assert problems(told) == []
    (read,) = told["inputs"]
    assert (read["namespace"], read["name"]) == (namespace, name)
    assert read["facets"]["version"]["datasetVersion"] == "sha256:d"


def test_a_move_reads_a_version_and_writes_the_champion(store: ArtifactStore, adapter: Artifact) -> None:
    _, (registered,) = registration_datasets(store, [adapter], "handbook", 3)
    (read,), (written,) = move_datasets("handbook", 3)
    assert (read.namespace, read.name, read.facets["version"].datasetVersion) == (
        registered.namespace, registered.name, "3",
    )  # fmt: skip
    assert (written.namespace, written.name) == ("jora", "champion/handbook")
    assert written.facets["version"].datasetVersion == "3"


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda told: told.pop("eventTime"), "'eventTime' is a required"),
        (lambda told: told["run"].update(runId="one"), "'one' is not a 'uuid'"),
        (lambda told: told.update(eventType="DONE"), "'DONE' is not"),
        (lambda told: told["outputs"][0].pop("name"), "'name' is a required"),
        (lambda told: told["outputs"][0]["facets"]["version"].pop("datasetVersion"), "'datasetVersion'"),
        (lambda told: told["outputs"][0]["facets"]["version"].pop("_producer"), "'_producer' is a required"),
        (
            lambda told: told["outputs"][0]["outputFacets"]["outputStatistics"].update(size="big"),
            "'big' is not",
        ),
    ],
)
def test_the_check_of_events_finds_what_is_wrong(
    harm: Any, problem: str, store: ArtifactStore, adapter: Artifact
) -> None:
    told = event(*datasets(store, adapter))
    assert problems(told) == []
    harm(told)
    assert any(problem in each for each in problems(told)), problems(told)


def test_import_is_light() -> None:
    heavy = ("openlineage", "pyarrow")
    code = f"import sys, jora_tasks.datasets; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_artifacts_that_machines_share_are_named_by_where_they_share_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JORA_ARTIFACTS", "s3://bucket/jora/")
    assert artifacts_place(tmp_path, "corpus") == "s3://bucket/jora/artifacts/corpus"
    monkeypatch.setenv("JORA_ARTIFACTS", (tmp_path / "share with space").as_uri())
    store = ArtifactStore(tmp_path / "home")
    _, (output,) = datasets(store, make_adapter(store))
    assert (output.namespace, output.name) == ("file", str(tmp_path / "share with space/artifacts/adapter"))
