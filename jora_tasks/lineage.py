"""What made an artifact: a tree over the manifests, and OpenLineage's view of one stage.

The manifests are the record; both views only read them, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.errors import InputError

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset
    from rich.tree import Tree

Node = dict[str, Any]

# States of a node: whether the input that was used is still on disk.
PRESENT, ABSENT, DAMAGED, DIFFERENT, SOURCE = "present", "absent", "damaged", "different", "source"

# Kind → its table, whose rows are the dataset's rows, and what the kind is.
_TABLES = {
    "corpus": "documents.parquet",
    "index": "chunks.parquet",
    "contexts": "contexts.parquet",
    "prompts": "prompts.parquet",
    "predictions": "predictions.parquet",
    "evaluation": "predictions.parquet",
}
_MEANINGS = {
    "corpus": "Normalised documents with a digest each.",
    "index": "Chunks of the documents and their vectors.",
    "contexts": "Ranked chunks for each question.",
    "prompts": "Messages and token ids of each example.",
    "adapter": "LoRA adapter in PEFT's format.",
    "predictions": "Answers of one arm to the test questions.",
    "evaluation": "Scored answers of every arm and the report.",
    "verdict": "Whether an adapter may become champion, with every check.",
    "registered": "Versions of the adapter in the registry.",
}


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

    table = pq.read_table(corpus.file(_TABLES["corpus"]), columns=["document_id", "digest"])
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
        label.append(f" {node.get('key', node.get('name', ''))}", style="cyan")
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
            leaf = Text(document["document_id"], style="green")
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
            text = str(value)
            yield f"{prefix}{key}", text if len(text) <= 40 else f"{text[:39]}…"


def datasets(store: ArtifactStore, artifact: Artifact) -> tuple[list[InputDataset], list[OutputDataset]]:
    """OpenLineage datasets of the stage that made an artifact.

    A logical artifact (a kind in a home) is one dataset, ``file`` + the folder of its kind; which of
    its artifacts was read or written is the dataset's version. A source is ``jora`` + kind/name.

    Returns:
      Inputs and outputs, for `airflow.providers.openlineage.api.emit_dataset_lineage`.
    """
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import output_statistics_output_dataset

    inputs = [
        _input(store, reference)
        for reference in artifact.manifest["inputs"].values()
        if reference["kind"] != "predictions"  # made within the evaluation, not by a stage before it
    ]
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        rowCount=_rows(artifact),
        size=sum(artifact.file(name).stat().st_size for name in artifact.manifest["files"]),
        fileCount=len(artifact.manifest["files"]),
    )
    output = OutputDataset(
        namespace="file",
        name=_folder(store, artifact.kind),
        facets={"version": _version(artifact.digest), **_description(artifact.kind)},
        outputFacets={"outputStatistics": statistics},
    )
    return inputs, [output]


def registration_datasets(
    store: ArtifactStore, artifacts: Sequence[Artifact], name: str, version: int
) -> tuple[list[InputDataset], list[OutputDataset]]:
    """OpenLineage datasets of a registration: the adapter and its evaluation → a registered version.

    The output is ``jora`` + registered/name, with the registry's version number as its version.
    """
    from openlineage.client.event_v2 import OutputDataset

    inputs = [
        _input(store, {"kind": each.kind, "key": each.key, "digest": each.digest}) for each in artifacts
    ]
    facets = {"version": _version(str(version)), **_description("registered")}
    return inputs, [OutputDataset(namespace="jora", name=f"registered/{name}", facets=facets)]


def _input(store: ArtifactStore, reference: Mapping[str, str]) -> InputDataset:
    """The dataset of an artifact (it has a key) or of a source (it has a name)."""
    from openlineage.client.event_v2 import InputDataset

    kind = reference["kind"]
    namespace, name = (
        ("file", _folder(store, kind)) if "key" in reference else ("jora", f"{kind}/{reference['name']}")
    )
    facets = {"version": _version(reference["digest"]), **_description(kind)}
    return InputDataset(namespace=namespace, name=name, facets=facets)


def _version(version: str) -> Any:
    from openlineage.client.facet_v2 import dataset_version_dataset

    return dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=version)


def _folder(store: ArtifactStore, kind: str) -> str:
    return str(store.home / "artifacts" / kind)


def _description(kind: str) -> dict[str, Any]:
    from openlineage.client.facet_v2 import dataset_type_dataset, documentation_dataset

    facets: dict[str, Any] = {}
    if kind in _MEANINGS:
        facets["documentation"] = documentation_dataset.DocumentationDatasetFacet(description=_MEANINGS[kind])
    if kind in ("adapter", "model", "registered"):
        facets["datasetType"] = dataset_type_dataset.DatasetTypeDatasetFacet(datasetType="MODEL")
    return facets


def _rows(artifact: Artifact) -> int | None:
    """Rows of the artifact's table, if it has one."""
    table = _TABLES.get(artifact.kind)
    if table is None or not artifact.file(table).is_file():
        return None
    import pyarrow.parquet as pq

    return pq.read_metadata(artifact.file(table)).num_rows
