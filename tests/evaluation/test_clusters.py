"""Clusters of dependent questions, against a search through the graph."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jora_tasks.evaluation.clusters import cluster_questions


def test_documents_join_and_groups_are_never_torn() -> None:
    ids = ["a", "b", "c", "d", "e", "f"]
    groups = ["a", "fact", "fact", "d", "e", "f"]
    documents = [{"one"}, {"one"}, {"two"}, {"two", "three"}, set(), {"four"}]
    clusters, by = cluster_questions(ids, groups, documents)
    assert clusters == ["a", "a", "a", "a", "e", "f"]
    assert by == {"document": 5, "question": 1}


def test_without_evidence_the_group_and_then_the_question() -> None:
    clusters, by = cluster_questions(["a", "b", "c"], ["fact", "fact", "c"], [set()] * 3)
    assert (clusters, by) == (["a", "a", "c"], {"group": 2, "question": 1})


def test_by_group_alone() -> None:
    clusters, by = cluster_questions(["a", "b"], ["a", "b"], [{"one"}, {"one"}], by="group")
    assert (clusters, by) == (["a", "b"], {"question": 2})


rows = st.lists(
    st.tuples(st.sampled_from("xyz"), st.sets(st.sampled_from("123456"), max_size=2)), min_size=1, max_size=12
)


@given(rows)
def test_two_questions_share_a_cluster_just_if_a_chain_joins_them(
    given_rows: list[tuple[str, set[str]]],
) -> None:
    ids = [str(i) for i in range(len(given_rows))]
    groups = [group for group, _ in given_rows]
    documents = [places for _, places in given_rows]
    clusters, by = cluster_questions(ids, groups, documents)
    assert sum(by.values()) == len(ids)
    for start in range(len(ids)):
        reached, waiting = {start}, [start]
        while waiting:
            here = waiting.pop()
            for other in range(len(ids)):
                if other not in reached and (
                    groups[here] == groups[other] or documents[here] & documents[other]
                ):
                    reached.add(other)
                    waiting.append(other)
        assert {i for i in range(len(ids)) if clusters[i] == clusters[start]} == reached
