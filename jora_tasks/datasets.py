"""What OpenLineage is told that a stage read and wrote: datasets with versions, statistics and assertions.

A kind of artifact is one dataset, named by the folder or URL where they are kept; which of its artifacts was
read or written is the dataset's version, and the corpus it was made for its partition. Documents are
the folder or URL they lie at; any other source is ``jora`` + kind/name, and so are the registry's versions
and the champion. It is all read from manifests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from jora_tasks.artifacts import Artifact, ArtifactStore, artifacts_place
from jora_tasks.spec import is_url

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset

Datasets = tuple["list[InputDataset]", "list[OutputDataset]"]

NAMESPACE = "jora"
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
    "documents": "The documents as they lie, by their digest.",
    "corpus": "Normalised documents with a digest each.",
    "index": "Chunks of the documents and their vectors.",
    "contexts": "Ranked chunks for each question.",
    "prompts": "Messages and token ids of each example.",
    "adapter": "LoRA adapter in PEFT's format.",
    "predictions": "Answers of one arm to the test questions.",
    "evaluation": "Scored answers of every arm and the report.",
    "verdict": "Whether an adapter may become champion, with every check.",
    "registered": "Versions of the adapter in the registry.",
    "champion": "The version in use.",
}
_MODELS = ("adapter", "model", "registered", "champion")
_MEASURE = re.compile(r"(\w+)_(?:better|no_worse)_than_\w+")


def datasets(
    store: ArtifactStore, artifact: Artifact, documents: str = "", snapshot: str | None = None
) -> Datasets:
    """Datasets of the stage that made an artifact.

    Args:
      documents: where the documents of a corpus lie; a manifest knows only the folder's name.
      snapshot: digest of the corpus that the artifact was made for.

    Returns:
      Inputs and outputs. The evaluation that a verdict is on carries the verdict's checks as assertions.
    """
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import output_statistics_output_dataset

    inputs = [
        _input(store, reference, documents)
        for reference in artifact.manifest["inputs"].values()
        if reference["kind"] != "predictions"  # made within the evaluation, not by a stage before it
    ]
    if artifact.kind == "verdict":
        for each in inputs:
            each.inputFacets = {**(each.inputFacets or {}), "dataQualityAssertions": _assertions(artifact)}
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        rowCount=_rows(artifact.kind, artifact.path),
        size=sum(artifact.file(name).stat().st_size for name in artifact.manifest["files"]),
        fileCount=len(artifact.manifest["files"]),
    )
    namespace, name = _place(artifacts_place(store.home, artifact.kind))
    output = OutputDataset(
        namespace=namespace,
        name=name,
        facets={"version": _version(artifact.digest), **_description(artifact.kind)},
        outputFacets={"outputStatistics": statistics, **_partition(snapshot)},
    )
    return inputs, [output]


def registration_datasets(
    store: ArtifactStore, artifacts: Sequence[Artifact], name: str, version: int
) -> Datasets:
    """Datasets of a registration: what it took → a version, whose number is the dataset's version."""
    inputs = [
        _input(store, {"kind": each.kind, "key": each.key, "digest": each.digest}) for each in artifacts
    ]
    return inputs, [_output("registered", name, version)]


def cost_facets(result: Mapping[str, Any]) -> dict[str, Any]:
    """The run facet that says what a stage took, named ``jora_cost``; see `jora_tasks.costs.Cost`.

    Args:
      result: the JSON object that the stage's command printed.
    """
    from openlineage.client.facet_v2 import RunFacet

    if "cost" not in result:
        return {}
    return {"jora_cost": RunFacet().with_additional_properties(**result["cost"])}


def move_datasets(name: str, version: int) -> Datasets:
    """Datasets of a promotion or rollback: a registered version → the champion."""
    from openlineage.client.event_v2 import InputDataset

    registered = _output("registered", name, version)
    taken = InputDataset(namespace=registered.namespace, name=registered.name, facets=registered.facets)
    return [taken], [_output("champion", name, version)]


def _output(kind: str, name: str, version: int) -> OutputDataset:
    from openlineage.client.event_v2 import OutputDataset

    facets = {"version": _version(str(version)), **_description(kind)}
    return OutputDataset(namespace=NAMESPACE, name=f"{kind}/{name}", facets=facets)


def _input(store: ArtifactStore, reference: Mapping[str, str], documents: str = "") -> InputDataset:
    """The dataset of an artifact (it has a key) or of a source (it has a name)."""
    from openlineage.client.event_v2 import InputDataset
    from openlineage.client.facet_v2 import input_statistics_input_dataset

    kind = reference["kind"]
    statistics: dict[str, Any] = {}
    if "key" in reference:
        namespace, name = _place(artifacts_place(store.home, kind))
        rows = _rows(kind, store.home / "artifacts" / kind / reference["key"])
        if rows is not None:
            facet = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(rowCount=rows)
            statistics = {"inputStatistics": facet}
    elif kind == "documents" and documents:
        namespace, name = _place(documents)
    else:
        namespace, name = NAMESPACE, f"{kind}/{reference['name']}"
    facets = {"version": _version(reference["digest"]), **_description(kind)}
    return InputDataset(namespace=namespace, name=name, facets=facets, inputFacets=statistics)


def _place(path: str) -> tuple[str, str]:
    """A folder or URL as OpenLineage names datasets: ``s3://bucket`` + path, ``file`` + path."""
    if not is_url(path):
        return "file", str(Path(path).resolve())
    url = urlsplit(path)
    if url.scheme == "file":
        return "file", unquote(url.path)
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}", url.path.strip("/") or "/"


def _assertions(verdict: Artifact) -> Any:
    from openlineage.client.facet_v2 import data_quality_assertions_dataset as quality

    checks = json.loads(verdict.file("verdict.json").read_text(encoding="utf-8"))["checks"]
    return quality.DataQualityAssertionsDatasetFacet(
        assertions=[
            quality.Assertion(
                assertion=each["name"],
                name=each["name"],
                success=each["passed"],
                column=measure[1] if (measure := _MEASURE.fullmatch(each["name"])) else None,
                severity="error",
                expected=str(each["expected"]),
                actual=str(each["actual"]),
            )
            for each in checks
        ]
    )


def _partition(snapshot: str | None) -> dict[str, Any]:
    """The part of its dataset that an artifact is: what was made of one corpus."""
    from openlineage.client.facet_v2 import base_subset_dataset as subset

    if snapshot is None:
        return {}
    partition = subset.Partition(dimensions={"snapshot": snapshot}, identifier=snapshot)
    condition = subset.PartitionSubsetCondition(partitions=[partition])
    return {"subset": subset.OutputSubsetOutputDatasetFacet(outputCondition=condition)}


def _version(version: str) -> Any:
    from openlineage.client.facet_v2 import dataset_version_dataset

    return dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=version)


def _description(kind: str) -> dict[str, Any]:
    from openlineage.client.facet_v2 import dataset_type_dataset, documentation_dataset

    facets: dict[str, Any] = {}
    if kind in _MEANINGS:
        facets["documentation"] = documentation_dataset.DocumentationDatasetFacet(description=_MEANINGS[kind])
    if kind in _MODELS:
        facets["datasetType"] = dataset_type_dataset.DatasetTypeDatasetFacet(datasetType="MODEL")
    return facets


def _rows(kind: str, folder: Path) -> int | None:
    """Rows of an artifact's table, if it has one."""
    table = _TABLES.get(kind)
    if table is None or not (folder / table).is_file():
        return None
    import pyarrow.parquet as pq

    return pq.read_metadata(folder / table).num_rows
