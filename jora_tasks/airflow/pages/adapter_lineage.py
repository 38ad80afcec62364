"""Everything that made a registered version, as nodes: from the documents to its place."""

from __future__ import annotations

from jora_tasks.airflow.pages import nodes
from jora_tasks.airflow.pages.addresses import address
from jora_tasks.airflow.pages.nodes import Node, ancestors, artifact_node, champion_node
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.registry import EVALUATION, Listed


def adapter_lineage(
    store: ArtifactStore, listed: Listed, champion: int | None
) -> tuple[dict[str, Node], str | None]:
    """The nodes by kind, and the key of the corpus, or None if the trail to it is lost.

    What is no longer in this home has the state `GONE`; what lies before it is not known then.

    Args:
      champion: the version that is champion now.
    """
    adapter = listed.adapter
    shown: dict[str, Node] = {}
    for kind, key, digest in (
        ("verdict", listed.verdict_key, ""),
        ("evaluation", listed.evaluation_key, adapter.tags.get(EVALUATION, "")),
        ("adapter", adapter.key, adapter.digest),
    ):
        manifest = store.manifest(kind, key)
        node = artifact_node(kind, key, digest, manifest, nodes.MADE)
        shown[kind] = node if key else Node(kind, nodes.GONE, facts=("not recorded",))
        if manifest is not None and node.state != nodes.GONE and kind != "verdict":
            for each, ancestor in ancestors(store, manifest, nodes.MADE).items():
                shown.setdefault(each, ancestor)
    href = address("adapters", adapter.name, "versions", adapter.version)
    shown["registered"] = Node(
        "registered", nodes.MADE, f"{adapter.name} version {adapter.version}", href=href
    )
    shown["champion"] = champion_node(adapter.name, adapter.version, champion)
    corpus = shown.get("corpus")
    ordered = {kind: shown.get(kind, Node(kind, nodes.GONE)) for kind in nodes.KINDS}
    return ordered, corpus.label if corpus is not None and corpus.href else None
