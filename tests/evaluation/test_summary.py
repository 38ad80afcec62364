"""From answers to figures: abstaining by hand, pairs by id, slices that add up."""

from __future__ import annotations

from typing import Any

import pytest

from jora_tasks.evaluation.summary import (
    ADAPTER,
    BASE,
    CHAMPION,
    GOLD,
    Prediction,
    Question,
    Resampling,
    Said,
    Shown,
    by_slice,
    compare,
    retrieval_measures,
    score_arm,
    summarise,
)

NOT_SAID = "The sources do not say."
HOW = Resampling(200, 0.95, 0)


def questions(n: int = 8, **facts: Any) -> list[Question]:
    return [
        Question(f"q{i}", "?", ("30",), f"g{i}", f"c{i // 2}", {"kind": "ab"[i % 2]}, **facts)
        for i in range(n)
    ]


def arm(
    name: str, texts: list[str], evidence: list[tuple[int, ...] | None], loss: float = 1.0
) -> list[Prediction]:
    asked = [(question, Shown(each)) for question, each in zip(questions(len(texts)), evidence, strict=True)]
    said = {f"q{i}": Said(text, loss + i) for i, text in enumerate(texts)}
    return score_arm(name, asked, said, NOT_SAID)


def test_abstaining_by_hand() -> None:
    """Four without evidence: three abstained from. Two with it: one abstained from. Two unknown."""
    texts = [NOT_SAID, NOT_SAID, NOT_SAID, "30", NOT_SAID, "30", NOT_SAID, "30"]
    figures = summarise(arm(ADAPTER, texts, [(), (), (), (), (1,), (2,), None, None]), HOW)
    assert figures["abstention_precision"] == 3 / 4
    assert figures["abstention_recall"] == 3 / 4
    assert (figures["of"]["abstention_precision"], figures["of"]["abstention_recall"]) == (4, 4)
    assert (figures["n"], figures["of"]["exact_match"]) == (8, 8)


def test_without_an_abstention_there_is_no_precision_of_it() -> None:
    figures = summarise(arm(ADAPTER, ["30"] * 4, [(1,)] * 4), HOW)
    assert not {"abstention_precision", "abstention_recall", "citation_recall"} & set(figures)


def test_a_row_keeps_every_score_and_null_for_what_it_has_not() -> None:
    row = arm(ADAPTER, [NOT_SAID], [()])[0].row()
    assert (row["abstained"], row["abstention_precision"], row["citation_recall"]) == (True, 1.0, None)
    assert (row["answer_loss"], row["cluster"], row["slices"]) == (1.0, "c0", {"kind": "a"})


def test_differences_are_of_the_questions_that_both_were_asked() -> None:
    adapter = arm(ADAPTER, ["30"] * 8, [(1,)] * 8, loss=0.5)
    base = arm(BASE, ["30", "no"] * 4, [(1,)] * 8, loss=1.0)
    found = compare(adapter, base[::-1][:6], HOW)  # in another order, and two of them missing
    assert (found["against"], found["n"], found["clusters"]) == (BASE, 6, 3)
    assert found["exact_match"] == 0.5
    assert found["answer_loss"] == pytest.approx(-0.5)
    assert found["interval"]["answer_loss"] == pytest.approx([-0.5, -0.5])
    assert found["p"]["answer_loss"] == 0.25  # all of the 8 assignments of signs to 3 clusters, but 2
    assert found["of"]["exact_match"] == 6


def test_slices_add_up_to_the_whole() -> None:
    rows = {
        ADAPTER: arm(ADAPTER, ["30"] * 6 + ["no"] * 2, [(1,)] * 8),
        BASE: arm(BASE, ["no"] * 8, [(1,)] * 8),
        GOLD: arm(GOLD, ["30"] * 3, [(1,)] * 3),
    }
    found = by_slice(rows, HOW)["kind"]
    assert {value: (part["n"], part["clusters"]) for value, part in found.items()} == {
        "a": (4, 4),
        "b": (4, 4),
    }
    whole = summarise(rows[ADAPTER], HOW)["exact_match"]
    assert sum(part["n"] * part["arms"][ADAPTER]["exact_match"] for part in found.values()) / 8 == whole
    assert [found[value]["arms"][GOLD]["n"] for value in "ab"] == [2, 1]
    assert set(found["a"]["differences"]) == {"base"} and CHAMPION not in found["a"]["arms"]
    assert found["a"]["differences"]["base"]["exact_match"] == 0.75


def test_retrieval_measures_are_of_the_questions_that_have_them() -> None:
    known = questions(4, retrieval={"recall@1": 1.0})
    found = retrieval_measures([*known, *questions(3)], HOW)
    assert found == {"n": 4, "measures": {"recall@1": 1.0}, "interval": {"recall@1": [1.0, 1.0]}}
