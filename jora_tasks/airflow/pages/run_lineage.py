"""What one DAG run made, found or used: a node for each kind, from its progress file and the manifests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jora_tasks.airflow.pages import nodes
from jora_tasks.airflow.pages.addresses import address
from jora_tasks.airflow.pages.nodes import KINDS, Node, ancestors, artifact_node
from jora_tasks.airflow.pages.progress import RunProgress, read_progress
from jora_tasks.airflow.runs import progress_file, run_folder
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.manifest import MANIFEST
from jora_tasks.stages.pipeline import STAGES

# Kinds that a DAG makes; for others, all of them.
_OF_DAG = {"document_index": KINDS[:3]}
_STAGE_OF = {stage.kind or "registered": name for name, stage in STAGES.items()}


@dataclass(frozen=True)
class RunLineage:
    """The graph of a run.

    Attributes:
      nodes: kind → node, for every kind that the run's DAG makes or uses.
      more: further artifacts of a kind that the run made several of.
      registered: ``name``, ``version``, ``alias``, ``verdict`` of the version it registered; empty before.
      empty: whether the run has made and found nothing so far.
    """

    nodes: dict[str, Node]
    more: list[Node]
    registered: Mapping[str, Any]
    empty: bool


def run_lineage(store: ArtifactStore, dag_id: str, run_id: str, active: bool) -> RunLineage:
    """The graph of a run; registry and champion are for the caller, who knows the registry.

    Args:
      active: whether the run goes on; a stage that was running when its run ended has failed.
    """
    run = f"{dag_id}/{run_id}"
    progress = read_progress(progress_file(run_folder(store.home, dag_id, run_id)), store.shared)
    made = progress.made or _made_by(store, run)
    found, more = _made_nodes(store, made, _trail(store, progress.registered), run)
    upstream: dict[str, Node] = {}
    for kind in reversed(KINDS):  # from the latest: what it was made from comes before what others were
        node = found.get(kind)
        manifest = store.manifest(kind, node.label) if node else None
        if manifest is not None:
            for each, ancestor in ancestors(store, manifest, nodes.EARLIER).items():
                upstream.setdefault(each, ancestor)
    shown = {
        kind: found.get(kind) or upstream.get(kind) or _unmade(kind, progress, active)
        for kind in _OF_DAG.get(dag_id, KINDS)
    }
    if progress.registered:
        shown["registered"] = _registered(progress.registered)
    return RunLineage(shown, more, progress.registered, not made and not progress.registered)


def _trail(store: ArtifactStore, registered: Mapping[str, Any]) -> dict[str, str]:
    """Kind → key of what led to the registered version; a sweep makes other variants beside it."""
    key = str(registered.get("verdict", ""))
    manifest = store.manifest("verdict", key)
    if manifest is None:
        return {}
    before = ancestors(store, manifest, nodes.EARLIER)
    return {"verdict": key} | {kind: node.label for kind, node in before.items()}


def _made_nodes(
    store: ArtifactStore, made: Mapping[str, Mapping[str, str]], trail: Mapping[str, str], run: str
) -> tuple[dict[str, Node], list[Node]]:
    """The artifact of each kind on the registered version's trail, else the last one, and the others."""
    shown: dict[str, Node] = {}
    more: list[Node] = []
    for kind, keys in made.items():
        each = [
            artifact_node(kind, key, "", store.manifest(kind, key), state, run) for key, state in keys.items()
        ]
        shown[kind] = next((node for node in each if node.label == trail.get(kind)), each[-1])
        more += [node for node in each if node is not shown[kind]]
    return shown, more


def _made_by(store: ArtifactStore, run: str) -> dict[str, dict[str, str]]:
    """Kind → keys of the artifacts whose manifests name this run; for when its progress file is gone."""
    made: dict[str, dict[str, str]] = {}
    written = json.dumps(run).encode()
    for kind in nodes.ARTIFACTS:
        for file in sorted((store.home / "artifacts" / kind).glob(f"*/{MANIFEST}")):
            manifest = store.manifest(kind, file.parent.name) if written in _bytes(file) else None
            if manifest is not None and manifest["provenance"].get("airflow_run") == run:
                made.setdefault(kind, {})[manifest["key"]] = nodes.BUILT
    return made


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # removed since it was listed
        return b""


def _unmade(kind: str, progress: RunProgress, active: bool) -> Node:
    """A kind that the run has not made: its stage is at work, has failed or is to come."""
    event = progress.last.get(_STAGE_OF.get(kind, ""))
    unmade = Node(kind, nodes.WAITING if active else nodes.UNMADE)
    if event is None:
        return unmade
    if event["state"] == "running" and active:
        done, total, unit = event.get("done"), event.get("total"), event.get("unit", "")
        told = f"{done:,}" + (f" of {total:,}" if total else "") + f" {unit}" if done is not None else ""
        return Node(kind, nodes.RUNNING, facts=(told,) if told else ())
    if event["state"] in ("running", "failed"):
        reason = event.get("fields", {}).get("reason")
        return Node(kind, nodes.FAILED, facts=(str(reason),) if reason else ())
    return unmade


def _registered(told: Mapping[str, Any]) -> Node:
    name, version = told.get("name", ""), told.get("version")
    reused = told.get("state") == nodes.REUSED
    return Node(
        "registered",
        nodes.REUSED if reused else nodes.BUILT,
        f"{name} version {version}",
        facts=(f"registered as {told['alias']}",) if told.get("alias") else (),
        seconds=None if reused else told.get("seconds"),
        href=address("adapters", name, "versions", version),
    )


def with_champion(lineage: RunLineage, champion: int | None, held: tuple[str, ...]) -> RunLineage:
    """The graph with the champion's node.

    Args:
      champion: version that is champion now, None for none.
      held: what the registry's record says of this run's version as champion.
    """
    if "champion" not in lineage.nodes or not lineage.registered:
        return lineage
    name, version = str(lineage.registered.get("name", "")), lineage.registered.get("version")
    node = nodes.champion_node(name, version, champion, held)
    return replace(lineage, nodes={**lineage.nodes, "champion": node})
