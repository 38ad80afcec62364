"""Detail pages of artifacts: manifest, reports in a sandbox, the documents of a corpus."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse

from jora_tasks.airflow.pages import home
from jora_tasks.airflow.pages.documents import find_documents
from jora_tasks.airflow.pages.files import REPORTS, artifact_file
from jora_tasks.airflow.pages.flatten import flat
from jora_tasks.airflow.pages.graph import NAMES
from jora_tasks.airflow.pages.nodes import MADE, ancestors
from jora_tasks.airflow.pages.rendering import page
from jora_tasks.airflow.pages.security_headers import REPORT
from jora_tasks.manifest import Manifest

router = APIRouter()
ROWS = 50


@router.get("/artifacts/{kind}/{key}")
def show(request: Request, kind: str, key: str) -> Response:
    """What the manifest says."""
    manifest = _manifest(kind, key)
    run = str(manifest.get("provenance", {}).get("airflow_run") or "")
    dag_id, _, run_id = run.partition("/")
    corpus = ancestors(home.store(), manifest, MADE).get("corpus")
    return page(
        request,
        "artifact.html.j2",
        manifest=manifest,
        title=NAMES.get(kind, kind),
        counts=flat(manifest["counts"]),
        settings=flat(manifest["settings"]),
        dag_id=dag_id,
        run_id=run_id,
        report=kind in REPORTS and REPORTS[kind] in manifest["files"],
        corpus=key if kind == "corpus" else corpus.label if corpus and corpus.href else "",
        inputs=_inputs(manifest),
    )


@router.get("/artifacts/{kind}/{key}/report")
def report(request: Request, kind: str, key: str) -> Response:
    """The report in a frame that can do nothing."""
    manifest = _manifest(kind, key)
    if kind not in REPORTS:
        raise HTTPException(404, f"A {kind} has no report; evaluations and verdicts do.")
    return page(request, "report.html.j2", manifest=manifest, title=NAMES.get(kind, kind))


@router.get("/artifacts/{kind}/{key}/report.html")
def report_file(kind: str, key: str) -> Response:
    """The report itself, without scripts, addresses or an origin."""
    file = artifact_file(home.store(), kind, key, REPORTS.get(kind, ""))
    if file is None:
        raise HTTPException(404, f"There is no report of {kind} {key} in this home.")
    return HTMLResponse(file.read_bytes(), headers={"Content-Security-Policy": REPORT})


@router.get("/artifacts/corpus/{key}/documents")
def documents(request: Request, key: str, search: str = "", number: int = 1) -> Response:
    """The documents of a corpus, some to a page, those with ``search`` in their name."""
    file = artifact_file(home.store(), "corpus", key, "documents.parquet")
    if file is None:
        raise HTTPException(404, f"There is no corpus {key} in this home; run its stage again to make it.")
    found, total = find_documents(file, search.strip(), (max(number, 1) - 1) * ROWS, ROWS)
    return page(
        request,
        "documents.html.j2",
        key=key,
        documents=found,
        search=search.strip(),
        number=max(number, 1),
        last=max(1, -(-total // ROWS)),
        total=total,
    )


def _manifest(kind: str, key: str) -> Manifest:
    manifest = home.store().manifest(kind, key)
    if manifest is None:
        raise HTTPException(
            404, f"There is no {kind} {key} in this home: it was removed, or another home made it."
        )
    return manifest


def _inputs(manifest: Manifest) -> list[tuple[str, dict[str, Any], bool]]:
    """(role, reference, whether there is a page of it)."""
    return [
        (role, each, "key" in each and home.store().manifest(each["kind"], each["key"]) is not None)
        for role, each in manifest["inputs"].items()
    ]
