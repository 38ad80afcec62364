"""Which test questions depend on each other: those on one source document, or of one group.

Questions on one document stand or fall with that document and with how it was cut and found; several
phrasings of one fact do so with the fact. Whole clusters are drawn for intervals and signs are flipped by
cluster, so nothing within one is taken for independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from typing import Literal

By = Literal["document", "group"]


def cluster_questions(
    ids: Sequence[str], groups: Sequence[str], documents: Sequence[Collection[str]], by: By = "document"
) -> tuple[list[str], dict[str, int]]:
    """The cluster of each question, and how many questions were placed by what.

    Two questions are in one cluster if a chain of shared documents and groups joins them.

    Args:
      ids: of the questions.
      groups: of each; its own id where it has no group.
      documents: ids of the documents with its evidence; empty where that is unknown.
      by: ``group`` leaves documents out of it.

    Returns:
      A cluster's name for each question, that of its first one; and ``document``, ``group`` (no evidence)
      and ``question`` (neither evidence nor a group) → number of questions, zeros left out.
    """
    parents: dict[Hashable, Hashable] = {}

    def root(node: Hashable) -> Hashable:
        parents.setdefault(node, node)
        while parents[node] != node:
            parents[node] = node = parents[parents[node]]
        return node

    known = documents if by == "document" else [()] * len(ids)
    sizes = Counter(groups)
    placed: Counter[str] = Counter()
    for index, (id_, group, places) in enumerate(zip(ids, groups, known, strict=True)):
        for node in (("group", group), *(("document", place) for place in places)):
            parents[root(node)] = root(index)
        grouped = group != id_ or sizes[group] > 1
        placed["document" if places else "group" if grouped else "question"] += 1
    first: dict[Hashable, str] = {}
    clusters = [first.setdefault(root(index), id_) for index, id_ in enumerate(ids)]
    return clusters, {name: placed[name] for name in ("document", "group", "question") if placed[name]}
