"""What made an artifact: a tree over the manifests, which are the record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.characters import visible
from jora_tasks.errors import InputError

if TYPE_CHECKING:
    from rich.tree import Tree

Node = dict[str, Any]

# States of a node: whether the input that was used is still on disk.
PRESENT, ABSENT, DAMAGED, DIFFERENT, SOURCE = "present", "absent", "damaged", "different", "source"


def events_file(home: Path) -> Path:
    """Where OpenLineage events of a home are appended, one JSON object a line."""
    return home / "openlineage" / "events.jsonl"


def trace(store: ArtifactStore, artifact: Artifact) -> Node:
    """Everything that an artifact was made from, down to the documents.

    Returns:
      A JSON tree. A node of an artifact has ``kind``, ``key``, ``digest``, ``state`` and, if it is on
      disk, ``created``, ``code_version``, ``settings``, ``seeds`` (setting → seed), ``airflow_run``,
      ``counts``, ``inputs`` (role → node) and, for a corpus, ``documents`` (id and digest of each).
      The node of a source has ``kind``, ``name``, ``digest`` and state "source". An artifact that
      was used twice is told in full once; its other nodes have ``repeated``. Absent, damaged or
      different inputs are nodes as well, with nothing below.
    """
    reference = {"kind": artifact.kind, "key": artifact.key, "digest": artifact.digest}
    return _node(store, reference, artifact, set())


def snapshot_of(store: ArtifactStore, artifact: Artifact) -> str | None:
    """Digest of the corpus that an artifact descends from; None where what led to it is gone.

    Of several, as for an adapter that began from an earlier one, it is the one with the fewest steps between.
    Manifests alone are read: files between, an index above all, may be large or on another machine.
    """
    if artifact.kind == "corpus":
        return artifact.digest
    generation, seen = [artifact.manifest], {artifact.digest}
    while generation:
        references = [each for one in generation for each in one["inputs"].values() if "key" in each]
        for reference in references:
            if reference["kind"] == "corpus":
                return reference["digest"]
        further = [each for each in references if each["digest"] not in seen]
        found = [(store.manifest(each["kind"], each["key"]), each["digest"]) for each in further]
        seen |= {each["digest"] for each in further}
        generation = [manifest for manifest, digest in found if manifest and manifest["digest"] == digest]
    return None


def _node(store: ArtifactStore, reference: Mapping[str, str], found: Artifact | None, seen: set[str]) -> Node:
    if "key" not in reference:
        return {**reference, "state": SOURCE}
    node: Node = dict(reference)
    artifact, node["state"] = (found, PRESENT) if found else _find(store, reference)
    if artifact is None:
        return node
    if reference["digest"] in seen:
        return node | {"repeated": True}
    seen.add(reference["digest"])
    manifest = artifact.manifest
    node |= {
        "created": manifest["created"],
        "seconds": manifest["seconds"],
        "code_version": manifest["code_version"],
        "settings": manifest["settings"],
        "seeds": dict(_seeds(manifest["settings"])),
        "airflow_run": manifest.get("provenance", {}).get("airflow_run"),
        "counts": manifest["counts"],
        "inputs": {role: _node(store, value, None, seen) for role, value in manifest["inputs"].items()},
    }
    if artifact.kind == "corpus":
        node["documents"] = _documents(artifact)
    return node


def _find(store: ArtifactStore, reference: Mapping[str, str]) -> tuple[Artifact | None, str]:
    """The artifact that was used, or why it is not to be had."""
    try:
        artifact = store.get(reference["kind"], reference["key"])
    except InputError:
        there = (store.home / "artifacts" / reference["kind"] / reference["key"]).is_dir()
        return None, DAMAGED if there else ABSENT
    if artifact.digest != reference["digest"]:
        return None, DIFFERENT
    return artifact, PRESENT


def _seeds(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _seeds(value, f"{prefix}{key}.")
        elif key == "seed":
            yield f"{prefix}{key}", value


def _documents(corpus: Artifact) -> list[dict[str, str]]:
    import pyarrow.parquet as pq

    table = pq.read_table(corpus.file("documents.parquet"), columns=["document_id", "digest"])
    return table.to_pylist()


def render(tree: Node, documents: int = 10) -> Tree:
    """The trace for a terminal.

    Args:
      tree: from `trace`.
      documents: most documents listed of a corpus; the rest is counted.
    """
    from rich.text import Text
    from rich.tree import Tree

    def grow(node: Node, role: str | None, parent: Tree | None) -> Tree:
        label = Text(f"{role}: " if role and role != node["kind"] else "", style="dim")
        label.append(node["kind"], style="bold")
        label.append(f" {visible(str(node.get('key', node.get('name', ''))))}", style="cyan")
        label.append(f"  {node['digest'][:19]}", style="dim")
        label.append(f"  {node['note']}" if "note" in node else "", style="dim")
        if node["state"] not in (PRESENT, SOURCE):
            label.append(f"  {node['state']}", style="bold red")
        if node.get("repeated"):
            label.append("  as above", style="dim")
        branch = parent.add(label) if parent is not None else Tree(label)
        if "created" in node:
            branch.add(Text(", ".join(_facts(node)), style="dim"))
        for name, child in node.get("inputs", {}).items():
            grow(child, name, branch)
        listed = node.get("documents", [])
        for document in listed[:documents]:
            leaf = Text(visible(document["document_id"]), style="green")
            branch.add(leaf.append(f"  {document['digest'][:19]}", style="dim"))
        if len(listed) > documents:
            branch.add(Text(f"and {len(listed) - documents} more documents", style="dim"))
        return branch

    return grow(tree, None, None)


def _facts(node: Node) -> Iterator[str]:
    yield f"made {node['created']} by code {node['code_version']} in {node['seconds']:g} s"
    yield from (f"{name} {value}" for name, value in _short(node["settings"]))
    if node["airflow_run"]:
        yield f"Airflow run {node['airflow_run']}"


def _short(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings with their dotted names; a long text is cut."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _short(value, f"{prefix}{key}.")
        else:
            text = visible(str(value))
            yield f"{prefix}{key}", text if len(text) <= 40 else f"{text[:39]}…"
