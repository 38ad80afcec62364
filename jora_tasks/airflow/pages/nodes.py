"""The artifacts of a run, or of an adapter, as nodes of one graph: documents → … → champion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jora_tasks.airflow.pages.addresses import address
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.manifest import Manifest

# In the order of the pipeline; sources first in each row of the graph.
KINDS = (
    "documents",
    "corpus",
    "index",
    "questions",
    "contexts",
    "prompts",
    "model",
    "adapter",
    "evaluation",
    "verdict",
    "registered",
    "champion",
)
ARTIFACTS = ("corpus", "index", "contexts", "prompts", "adapter", "evaluation", "verdict")

# States of a node.
BUILT, REUSED, EARLIER, MADE, SOURCE = "built", "reused", "earlier", "made", "source"
RUNNING, FAILED, WAITING, UNMADE, NONE, GONE = "running", "failed", "to come", "not made", "none", "not here"


@dataclass(frozen=True)
class Node:
    """One box of the graph.

    Attributes:
      kind: one of `KINDS`.
      state: how it came about, or why it is not there.
      label: key, name or version.
      digest: whole, or empty.
      facts: a few words each: counts, scores.
      href: path below the pages' prefix, or empty.
      run: ``dag_id/run_id`` of the run that made it, or empty.
    """

    kind: str
    state: str
    label: str = ""
    digest: str = ""
    facts: tuple[str, ...] = ()
    seconds: float | None = None
    href: str = ""
    run: str = ""


def artifact_node(
    kind: str, key: str, digest: str, manifest: Manifest | None, state: str, run: str = ""
) -> Node:
    """The node of an artifact that was used.

    Args:
      digest: that it had when it was used; empty if not known.
      manifest: of the artifact, None if it is no longer in the home.
      state: how it came to the run.
      run: the run that the graph is of; an artifact of another run is an earlier one.
    """
    if manifest is None or (digest and manifest["digest"] != digest):
        return Node(kind, GONE, key, digest)
    made_by = str(manifest.get("provenance", {}).get("airflow_run") or "")
    return Node(
        kind,
        state,
        key,
        manifest["digest"],
        facts(kind, manifest["counts"]),
        manifest["seconds"],
        address("artifacts", kind, key),
        "" if made_by == run else made_by,
    )


def champion_node(name: str, version: Any, champion: int | None, facts: tuple[str, ...] = ()) -> Node:
    """The place that a version has or has not.

    Args:
      version: that the graph is of.
      champion: version that has it now, None for none.
      facts: what the record says of the graph's version.
    """
    if champion is None:
        return Node("champion", NONE, facts=("no champion yet",))
    href = address("adapters", name, "versions", champion)
    if champion == version:
        return Node("champion", MADE, "this version", facts=facts, href=href)
    return Node("champion", EARLIER, f"version {champion}", facts=facts, href=href)


def ancestors(store: ArtifactStore, manifest: Manifest, state: str) -> dict[str, Node]:
    """Everything an artifact was made from, by kind, with this state; of several of one kind, the nearest."""
    nodes: dict[str, Node] = {}
    waiting = [manifest]
    while waiting:
        inputs = waiting.pop(0)["inputs"]
        for reference in _in_order(inputs):
            kind = reference["kind"]
            if kind not in KINDS or kind in nodes:
                continue
            if "key" not in reference:
                nodes[kind] = Node(kind, SOURCE, reference["name"], reference["digest"])
                continue
            found = store.manifest(kind, reference["key"])
            nodes[kind] = artifact_node(kind, reference["key"], reference["digest"], found, state)
            if found is not None and nodes[kind].state != GONE:
                waiting.append(found)
    return nodes


def _in_order(inputs: Mapping[str, Mapping[str, str]]) -> Iterable[Mapping[str, str]]:
    """Inputs by their place in the graph; the embedder and tokenizer are models too, and not the base."""
    for role, reference in inputs.items():
        if reference["kind"] != "model" or role == "base_model":
            yield reference


def facts(kind: str, counts: Mapping[str, Any]) -> tuple[str, ...]:
    """What to know of an artifact at a glance."""
    told = {
        "corpus": (_count(counts, "documents"), _change(counts)),
        "index": (_count(counts, "chunks"), _count(counts, "chunks_embedded", "embedded anew")),
        "contexts": (_questions(counts), _recall(counts)),
        "prompts": (_questions(counts), _figure(counts.get("tokens"), "mean", "tokens each")),
        "adapter": (_count(counts, "steps"), _figure(counts, "final_loss", "final loss")),
        "evaluation": (_count(counts, "questions"), _exact_match(counts)),
        "verdict": (_verdict(counts),),
    }
    return tuple(each for each in told.get(kind, ()) if each)


def _count(counts: Mapping[str, Any], name: str, word: str = "") -> str:
    value = counts.get(name)
    if not isinstance(value, int):
        return ""
    return f"{value:,} {word or (name.removesuffix('s') if value == 1 else name)}"


def _figure(counts: Any, name: str, word: str) -> str:
    value = counts.get(name) if isinstance(counts, Mapping) else None
    return f"{value:.4g} {word}" if isinstance(value, int | float) else ""


def _change(counts: Mapping[str, Any]) -> str:
    told = [f"{counts[name]:,} {name}" for name in ("added", "updated", "removed") if counts.get(name)]
    return ", ".join(told) or "nothing changed"


def _questions(counts: Mapping[str, Any]) -> str:
    questions = counts.get("questions")
    return f"{sum(questions.values()):,} questions" if isinstance(questions, Mapping) else ""


def _recall(counts: Mapping[str, Any]) -> str:
    recall = counts.get("recall_at_k") or {}
    k = max(recall, key=int, default=None)
    return f"recall@{k} {recall[k]:.3f}" if k else ""


def _exact_match(counts: Mapping[str, Any]) -> str:
    scores = counts.get("exact_match") or {}
    value = scores.get("adapter_with_contexts")
    return f"exact match {value:.3f}" if isinstance(value, int | float) else ""


def _verdict(counts: Mapping[str, Any]) -> str:
    failed = counts.get("failed")
    if failed is None:
        return ""
    return (
        "passes every check" if not failed else f"{len(failed)} of {counts.get('checks', '?')} checks failed"
    )
