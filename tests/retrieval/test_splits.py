from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jora_tasks.errors import InputError
from retrieval.evidence import Evidence
from retrieval.questions import Question
from retrieval.splits import assign_split, check_splits, split_questions


def question(id_, group="", documents=(), split=""):
    evidence = tuple(Evidence(document, "x") for document in documents)
    return Question(id_, f"{id_}?", ("a",), split, group or id_, evidence, f"q.jsonl:{id_}")


def splits_of(questions, by="group", dev=0.2, test=0.3):
    return {each.id: each.split for each in split_questions(questions, dev, test, by)}


def test_rows_of_a_group_are_in_one_split_and_follow_the_fractions():
    questions = [question(f"{g}-{i}", f"g{g}") for i in range(3) for g in range(200)]
    groups = {}
    for each in split_questions(questions, 0.1, 0.2):
        groups.setdefault(each.group, set()).add(each.split)
    assert all(len(splits) == 1 for splits in groups.values())
    counts = Counter(split for (split,) in groups.values())
    assert 25 <= counts["test"] <= 55
    assert 8 <= counts["dev"] <= 35


def test_split_does_not_depend_on_other_rows_and_follows_the_fractions():
    assert assign_split("g", 0, 0) == "train"
    assert assign_split("g", 0, 0.999999) == "test"
    before = {f"g{i}": assign_split(f"g{i}", 0.1, 0.2) for i in range(100)}
    after = {group: assign_split(group, 0.1, 0.3) for group in before}
    assert all(after[group] == "test" for group, split in before.items() if split == "test")


def test_a_row_without_split_follows_its_group():
    assert splits_of([question("a", "g", split="test"), question("b", "g")], dev=0, test=0) == {
        "a": "test",
        "b": "test",
    }


rows = st.lists(
    st.tuples(st.integers(0, 5), st.frozensets(st.integers(0, 8), max_size=3)), min_size=1, max_size=25
).map(lambda drawn: [question(f"q{i}", f"g{g}", map(str, docs)) for i, (g, docs) in enumerate(drawn)])


@settings(max_examples=80, deadline=None)
@given(rows)
def test_by_document_no_document_and_no_group_is_in_two_splits(questions):
    places = {}
    for each in split_questions(questions, 0.3, 0.3, "document"):
        for name in (f"group {each.group}", *(e.document_id for e in each.evidence)):
            places.setdefault(name, set()).add(each.split)
    assert all(len(splits) == 1 for splits in places.values())


@settings(max_examples=80, deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_by_document_the_order_of_rows_changes_nothing_nor_do_unrelated_ones(questions, random):
    expected = splits_of(questions, "document")
    shuffled = [*questions, question("new", "other", ["another"])]
    random.shuffle(shuffled)
    assert splits_of(shuffled, "document") == expected | {"new": splits_of(shuffled, "document")["new"]}


@settings(max_examples=80, deadline=None)
@given(rows)
def test_families_by_document_are_the_connected_components(questions):
    """Naming one row's split moves just the rows that can be reached from it."""
    named = [question("first", questions[0].group, ["d"], split="dev"), *questions]
    reached, seen = {"d", f"group {questions[0].group}"}, set()
    while seen != reached:
        seen = set(reached)
        for each in named:
            nodes = {f"group {each.group}", *(e.document_id for e in each.evidence)}
            reached |= nodes if nodes & reached else set()
    found = {each.id for each in split_questions(named, 0, 0, "document") if each.split == "dev"}
    assert found == {each.id for each in named if f"group {each.group}" in reached}


def test_a_family_in_two_splits_is_refused_by_file_and_line():
    with pytest.raises(InputError, match=r"q\.jsonl:b: group 'g' is in train and in test"):
        splits_of([question("a", "g", split="train"), question("b", "g", split="test")])
    chain = [
        question("a", "", ["d"], "train"),
        question("b", "", ["d", "e"]),
        question("c", "", ["e"], "dev"),
    ]
    with pytest.raises(
        InputError, match=r"q\.jsonl:c is in dev and shares a document, .* with q\.jsonl:a in"
    ):
        splits_of(chain, "document")
    assert splits_of(chain)["c"] == "dev"


@pytest.mark.parametrize(
    ("only", "message"),
    [("train", r"has no test question; .*raise questions\.test_fraction"), ("test", "has no train question")],
)
def test_questions_of_one_split_alone_are_refused(only, message):
    with pytest.raises(InputError, match=message):
        check_splits([question("a", split=only)], "questions.jsonl")
