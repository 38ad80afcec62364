"""Lineage over a small chain of real artifacts."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jora_tasks import __version__
from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.digests import digest_file, digest_json
from jora_tasks.lineage import render, snapshot_of, trace
from tests.chain import DOCUMENTS, build, make_adapter


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home")


@pytest.fixture
def adapter(store: ArtifactStore) -> Artifact:
    return make_adapter(store)


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
    assert corpus["inputs"]["documents"]["digest"] == digest_json(DOCUMENTS)


def test_the_snapshot_is_the_digest_of_the_corpus(store: ArtifactStore, adapter: Artifact) -> None:
    (corpus,) = (store.get("corpus", each.name) for each in (store.home / "artifacts" / "corpus").iterdir())
    assert snapshot_of(store, adapter) == snapshot_of(store, corpus) == corpus.digest

    documents = [{"document_id": "new.md", "digest": "sha256:new"}]
    later = make_adapter(store, documents, begun_from=adapter)
    assert snapshot_of(store, later) not in (None, corpus.digest)  # its own, not that of where it began


def test_the_snapshot_is_not_known_where_what_led_to_it_is_gone(
    store: ArtifactStore, adapter: Artifact
) -> None:
    prompts = adapter.manifest["inputs"]["prompts"]["key"]
    shutil.rmtree(store.home / "artifacts" / "prompts" / prompts)
    assert snapshot_of(store, adapter) is None


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


def test_names_are_not_read_as_markup_nor_obeyed(store: ArtifactStore) -> None:
    documents = [{"document_id": "[bold]notes[/bold]\x1b[31m.md", "digest": "sha256:1"}]
    corpus = build(store, "corpus", {}, "documents.parquet", documents)
    assert r"[bold]notes[/bold]\x1b[31m.md" in text_of(trace(store, corpus))


def test_import_is_light() -> None:
    heavy = ("openlineage", "pyarrow", "rich")
    code = f"import sys, jora_tasks.lineage; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
