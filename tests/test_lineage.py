"""Lineage over a small chain of real artifacts."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jora_tasks import __version__
from jora_tasks.artifacts import Artifact, ArtifactStore, Input, Source, digest_file, digest_json
from jora_tasks.lineage import datasets, registration_datasets, render, trace

DOCUMENTS = [{"document_id": f"guide/{i:02}.md", "digest": f"sha256:{i:064x}"} for i in range(12)]


def build(
    store: ArtifactStore,
    kind: str,
    inputs: dict[str, Input],
    table: str | None = None,
    rows: list[dict[str, Any]] | None = None,
    **settings: Any,
) -> Artifact:
    def write(folder: Path) -> dict[str, Any]:
        if table:
            pq.write_table(pa.Table.from_pylist(rows or [{"x": 1}, {"x": 2}]), folder / table)
        else:
            (folder / "adapter_config.json").write_text("{}")
        return {"rows": len(rows or [])}

    return store.build(
        kind,
        version=1,
        settings=settings,
        inputs=inputs,
        write=write,
        provenance={"airflow_run": f"dag/{kind}"},
    )


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home")


@pytest.fixture
def adapter(store: ArtifactStore) -> Artifact:
    documents = Source("documents", "guide", "sha256:d")
    corpus = build(store, "corpus", {"documents": documents}, "documents.parquet", DOCUMENTS)
    index = build(store, "index", {"corpus": corpus}, "chunks.parquet", chunk_tokens=200)
    contexts = build(
        store,
        "contexts",
        {"index": index, "corpus": corpus, "questions": Source("questions", "q.jsonl", "sha256:q")},
        "contexts.parquet",
    )
    prompts = build(store, "prompts", {"contexts": contexts}, "prompts.parquet", seed=3)
    base = Source("model", "tiny-base", "sha256:b")
    return build(
        store, "adapter", {"prompts": prompts, "base_model": base}, training={"seed": 7, "epochs": 2}
    )


def text_of(tree: dict[str, Any], **kwargs: int) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(render(tree, **kwargs))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_trace_reaches_every_document(store: ArtifactStore, adapter: Artifact) -> None:
    tree = trace(store, adapter)
    json.dumps(tree)
    assert (tree["kind"], tree["key"], tree["digest"]) == ("adapter", adapter.key, adapter.digest)
    assert tree["seeds"] == {"training.seed": 7}
    assert tree["settings"] == {"training": {"seed": 7, "epochs": 2}}
    assert tree["code_version"] == __version__
    assert tree["airflow_run"] == "dag/adapter"
    assert tree["inputs"]["base_model"] == {
        "kind": "model",
        "name": "tiny-base",
        "digest": "sha256:b",
        "state": "source",
    }
    prompts = tree["inputs"]["prompts"]
    assert prompts["seeds"] == {"seed": 3}
    contexts = prompts["inputs"]["contexts"]
    assert contexts["inputs"]["questions"]["name"] == "q.jsonl"
    corpus = contexts["inputs"]["index"]["inputs"]["corpus"]
    assert corpus["documents"] == DOCUMENTS
    assert corpus["inputs"]["documents"]["digest"] == "sha256:d"


def test_what_was_used_twice_is_told_once(store: ArtifactStore, adapter: Artifact) -> None:
    tree = trace(store, adapter)
    again = tree["inputs"]["prompts"]["inputs"]["contexts"]["inputs"]["corpus"]
    assert again["repeated"] and "documents" not in again
    assert text_of(tree).count("guide/00.md") == 1


@pytest.mark.parametrize(
    ("harm", "state"), [("remove", "absent"), ("alter", "damaged"), ("redo", "different")]
)
def test_input_that_is_no_longer_what_was_used(
    store: ArtifactStore, adapter: Artifact, harm: str, state: str
) -> None:
    index = next((store.home / "artifacts" / "index").glob("[!.]*"))
    manifest = json.loads((index / "manifest.json").read_text())
    if harm == "remove":
        shutil.rmtree(index)
    elif harm == "alter":
        (index / "chunks.parquet").write_bytes(b"other")
    else:
        (index / "chunks.parquet").write_bytes(b"other")
        files = {"chunks.parquet": digest_file(index / "chunks.parquet")}
        redone = manifest | {"files": files, "digest": digest_json(files)}
        (index / "manifest.json").write_text(json.dumps(redone))
    tree = trace(store, adapter)
    node = tree["inputs"]["prompts"]["inputs"]["contexts"]["inputs"]["index"]
    assert node == {"kind": "index", "key": manifest["key"], "digest": manifest["digest"], "state": state}
    assert state in text_of(tree)


def test_render_counts_the_documents_it_leaves_out(store: ArtifactStore, adapter: Artifact) -> None:
    text = text_of(trace(store, adapter), documents=10)
    assert "guide/09.md" in text and "guide/10.md" not in text
    assert "and 2 more documents" in text
    assert "base_model: model tiny-base" in text
    assert "training.seed 7" in text
    assert "Airflow run dag/adapter" in text
    assert "guide/11.md" in text_of(trace(store, adapter), documents=99)


def test_names_are_not_read_as_markup(store: ArtifactStore) -> None:
    documents = [{"document_id": "[bold]notes[/bold].md", "digest": "sha256:1"}]
    corpus = build(store, "corpus", {}, "documents.parquet", documents)
    assert "[bold]notes[/bold].md" in text_of(trace(store, corpus))


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


def test_import_is_light() -> None:
    heavy = ("openlineage", "pyarrow", "rich")
    code = f"import sys, jora_tasks.lineage; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
