"""Train, dev and test: by a key or by document, never by row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from jora_tasks.errors import InputError
from retrieval.questions import Question

SplitBy = Literal["group", "document"]


def split_questions(
    questions: Sequence[Question],
    dev_fraction: float,
    test_fraction: float,
    by: SplitBy = "group",
) -> list[Question]:
    """Give each question its split, in their order.

    Questions of one group are in one split; by document, so are all whose evidence shares a document,
    directly or through others (connected components). Such a family goes to the split that one of its
    rows names, and otherwise by a hash of its name: to test with probability ``test_fraction``, to dev
    with ``dev_fraction``, else to train. So a question keeps its split when others come and go, but
    where they join two families.

    Raises:
      InputError: if a family's rows name two splits.
    """
    families = _families(questions, by)
    named: dict[str, Question] = {}
    for question, family in zip(questions, families, strict=True):
        first = named.setdefault(family, question) if question.split else question
        if first.split != question.split:
            raise InputError(_two_splits(first, question))
    return [
        replace(
            question,
            split=named[family].split
            if family in named
            else assign_split(family, dev_fraction, test_fraction),
        )
        for question, family in zip(questions, families, strict=True)
    ]


def assign_split(family: str, dev_fraction: float, test_fraction: float) -> str:
    """The split of a family of questions, decided by its name alone."""
    draw = int.from_bytes(hashlib.sha256(family.encode()).digest()[:8], "big") / 2**64
    if draw < test_fraction:
        return "test"
    return "dev" if draw < test_fraction + dev_fraction else "train"


def check_splits(questions: Iterable[Question], path: Path) -> None:
    """Refuse questions that nothing can be learned from, or measured on.

    Raises:
      InputError: without a question of train, or of test.
    """
    splits = {question.split for question in questions}
    for split, remedy in (
        ("train", "lower questions.dev_fraction and questions.test_fraction"),
        ("test", "raise questions.test_fraction"),
    ):
        if split not in splits:
            raise InputError(
                f'questions.path {path} has no {split} question; give rows "split": "{split}" or, where no '
                f"row names a split, {remedy} or give questions of more groups."
            )


def _families(questions: Sequence[Question], by: SplitBy) -> list[str]:
    """The family of each question: its group, or the least document of its connected component."""
    if by == "group":
        return [question.group for question in questions]
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]  # halves the path
        return node

    # "document" sorts before "group": a component is named by a document wherever it has one
    for question in questions:
        nodes = [("group", question.group)]
        nodes += [("document", evidence.document_id) for evidence in question.evidence]
        roots = sorted(root(node) for node in nodes)
        for other in roots[1:]:
            parent[other] = roots[0]
    return [root(("group", question.group))[1] for question in questions]


def _two_splits(first: Question, second: Question) -> str:
    if first.group == second.group:
        return (
            f"{second.place}: group {first.group!r} is in {first.split} and in {second.split}; "
            "put all questions of a group in one split."
        )
    return (
        f"{second.place} is in {second.split} and shares a document, directly or through other questions, "
        f"with {first.place} in {first.split}; put them in one split, or set questions.split_by to group."
    )
