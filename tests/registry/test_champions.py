"""The champion moves with the record of it, whoever is killed and whoever else moves it at once."""

from __future__ import annotations

import itertools
import re
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.registry import CHAMPION, VERDICT_KEY, ChampionMoved, Registry, Transition
from jora_tasks.registry.champions import Record, counted, earlier_champions
from tests.registry.moving import MOVED, together
from tests.registry.registering import make_adapter, register


@pytest.fixture
def line() -> str:
    """A name of its own for each test: a server is shared."""
    return f"line-{uuid.uuid4().hex[:12]}"


def with_versions(store: ArtifactStore, line: str, count: int) -> Registry:
    registry = Registry(store.home)
    for seed in range(1, count + 1):
        register(registry, make_adapter(store, seed), name=line)
    return registry


def promote(registry: Registry, line: str, version: int, **options: Any) -> Transition:
    return registry.promote(line, version, **{"by": "anna", "reason": "to see"} | options)


def rollback(registry: Registry, line: str) -> Transition:
    return registry.rollback(line, by="ben", reason="complaints")


def champion(registry: Registry, line: str) -> int | None:
    found = registry.get_champion(line)
    return found.version if found else None


def alias(registry: Registry, line: str) -> int | None:
    found = registry.get_alias(line, CHAMPION)
    return found.version if found else None


def test_the_record_names_the_verdict_that_the_version_was_registered_with(
    registry_store: ArtifactStore,
) -> None:
    registry = Registry(registry_store.home)
    register(registry, make_adapter(registry_store, 1), **{VERDICT_KEY: "first"})
    register(registry, make_adapter(registry_store, 2), **{VERDICT_KEY: "second"})
    assert promote(registry, "documents", 1).verdict == "first"
    assert promote(registry, "documents", 2, verdict="later").verdict == "later"
    assert rollback(registry, "documents").verdict == ""


def test_promotion_and_rollback_walk_the_history(any_registry: ArtifactStore, line: str) -> None:
    registry = with_versions(any_registry, line, 3)
    assert champion(registry, line) is None
    first = promote(registry, line, 1, verdict="abc", airflow_run="dag/run", reason="beats\n the  base")
    assert (first.action, first.version, first.previous, first.by) == ("promote", 1, None, "anna")
    assert (first.reason, first.verdict, first.airflow_run) == ("beats the base", "abc", "dag/run")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first.at)
    with pytest.raises(InputError, match="no earlier champion"):
        rollback(registry, line)
    second = promote(registry, line, 2)
    assert second.previous == 1
    assert promote(registry, line, 2, reason="again") == second
    assert promote(registry, line, 3).previous == 2
    assert champion(registry, line) == alias(registry, line) == 3
    back = rollback(registry, line)
    assert (back.action, back.version, back.previous) == ("rollback", 2, 3)
    assert (back.by, back.reason) == ("ben", "complaints")
    assert rollback(registry, line).version == 1 == champion(registry, line)
    with pytest.raises(InputError, match="no earlier champion"):
        rollback(registry, line)
    assert promote(registry, line, 3).previous == 1
    assert rollback(registry, line).version == 1 == alias(registry, line)
    moves = [
        (each.action, each.version, each.previous) for each in Registry(any_registry.home).transitions(line)
    ]
    assert moves == [
        ("promote", 1, None),
        ("promote", 2, 1),
        ("promote", 3, 2),
        ("rollback", 2, 3),
        ("rollback", 1, 2),
        ("promote", 3, 1),
        ("rollback", 1, 3),
    ]
    assert line in registry.names()
    assert not [name for name in registry.names() if "champions" in name]
    with pytest.raises(InputError, match=r"no version 9 .* 1, 2, 3"):
        promote(registry, line, 9)
    with pytest.raises(InputError, match="no earlier champion"):
        rollback(registry, "others")


def test_a_champion_that_is_not_the_expected_one(any_registry: ArtifactStore, line: str) -> None:
    registry = with_versions(any_registry, line, 3)
    with pytest.raises(ChampionMoved, match="is none, not version 1;"):
        promote(registry, line, 2, expected=1)
    promote(registry, line, 1, expected=None)
    with pytest.raises(ChampionMoved, match=r"is version 1, not none; .* `jora promote 2 --expect 1`"):
        promote(registry, line, 2, expected=None)
    promote(registry, line, 2, expected=1)
    promote(registry, line, 2, expected=1)  # a try after a kill: it is done already
    assert [each.version for each in registry.transitions(line)] == [1, 2]
    registry.rollback(line, by="anna", reason="worse", expected=2)
    with pytest.raises(ChampionMoved, match="no longer version 2"):
        registry.rollback(line, by="anna", reason="worse", expected=2)
    assert [each.version for each in registry.transitions(line)] == [1, 2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": " \n"}, "by is empty"),
        ({"by": "x" * 201}, "by has 201"),
        ({"reason": "x" * 2001}, "reason has 2001"),
    ],
)
def test_who_and_why_are_bounded(
    options: dict[str, str], message: str, registry_store: ArtifactStore, line: str
) -> None:
    registry = with_versions(registry_store, line, 1)
    with pytest.raises(InputError, match=message):
        promote(registry, line, 1, **options)
    assert registry.transitions(line) == []


def test_rollback_skips_versions_that_are_gone(any_registry: ArtifactStore, line: str) -> None:
    registry = with_versions(any_registry, line, 3)
    for version in (1, 2, 3):
        promote(registry, line, version)
    registry._client().delete_model_version(line, "2")
    registry._client().delete_model_version(line, "3")
    assert champion(registry, line) is None
    back = rollback(registry, line)
    assert (back.version, back.previous) == (1, None)
    assert champion(registry, line) == alias(registry, line) == 1


def test_an_alias_from_before_there_was_a_history_begins_it(registry_store: ArtifactStore, line: str) -> None:
    registry = with_versions(registry_store, line, 2)
    registry.set_alias(line, CHAMPION, 1)
    assert champion(registry, line) == 1
    assert registry.transitions(line) == []
    assert promote(registry, line, 2, expected=1).previous == 1
    assert [(each.version, each.by) for each in registry.transitions(line)] == [(1, "unknown"), (2, "anna")]
    assert rollback(registry, line).version == 1


def test_an_alias_moved_by_another_hand_is_put_back(registry_store: ArtifactStore, line: str) -> None:
    registry = with_versions(registry_store, line, 2)
    promote(registry, line, 1)
    registry._client().set_registered_model_alias(line, CHAMPION, "2")
    assert champion(registry, line) == 1 == alias(registry, line)


def is_consistent(registry: Registry, line: str) -> bool:
    """Whether each transition replaced the one before, and the champion and its alias are the last."""
    moves = registry.transitions(line)
    chained = all(later.previous == before.version for before, later in itertools.pairwise(moves))
    return chained and champion(registry, line) == alias(registry, line) == moves[-1].version


def test_of_two_that_replace_the_same_champion_one_wins(any_registry: ArtifactStore, line: str) -> None:
    registry = with_versions(any_registry, line, 6)
    expected = None
    for versions in ((1, 2), (3, 4), (5, 6)):
        movers = [[(version, {"expected": expected})] for version in versions]
        told = dict(together(any_registry.home, line, movers))
        ((winner, won),) = [(name, each[0]) for name, each in told.items() if each != [MOVED]]
        assert won in versions
        last = registry.transitions(line)[-1]
        assert (last.version, last.previous, last.by) == (won, expected, winner)
        expected = won
    assert len(registry.transitions(line)) == 3
    assert is_consistent(registry, line)


def test_many_moves_at_once_leave_one_history(any_registry: ArtifactStore, line: str) -> None:
    registry = with_versions(any_registry, line, 3)
    for version in (1, 2, 3):
        promote(registry, line, version)
    promoting = [[(1, {}), (2, {}), (3, {})], [(2, {}), (1, {}), (2, {})]]
    told = together(any_registry.home, line, [*promoting, [(), (3, {})]])
    assert all(moves for _, moves in told)
    assert is_consistent(registry, line)
    moves = registry.transitions(line)
    assert {each.by for each in moves[3:]} <= {name for name, _ in told}
    for name, made in told:  # a process's moves are there in its order; some found their version champion
        answers = iter(made)
        assert all(each.version in answers for each in moves if each.by == name)


@pytest.mark.parametrize("kill_at", range(1, 7))
def test_a_kill_at_any_write_leaves_no_champion_or_the_new_one(
    any_registry: ArtifactStore, line: str, kill_at: int
) -> None:
    """What is written: the history's model, the record, the alias. The kill is before and after each."""
    registry = with_versions(any_registry, line, 2)
    ((name, ended),) = together(any_registry.home, line, [[(1, {"expected": None})]], kill_at)
    assert ended is None
    recorded = kill_at >= 4
    assert [each.by for each in registry.transitions(line)] == ([name] if recorded else [])
    assert alias(registry, line) == (1 if kill_at == 6 else None)
    assert champion(registry, line) == alias(registry, line) == (1 if recorded else None)
    # The next try goes on, and it is recorded once.
    assert promote(registry, line, 1, expected=None).version == 1
    assert promote(registry, line, 2, expected=1).previous == 1
    assert rollback(registry, line).version == 1
    assert [each.version for each in registry.transitions(line)] == [1, 2, 1]
    assert is_consistent(registry, line)


def record(number: int, after: int, version: int = 1) -> Record:
    return Record(number, after, uuid.uuid4().hex, Transition("promote", version, None, "", "x", ""))


@pytest.mark.parametrize(
    ("after", "kept"),
    [
        ([0, 1, 2], [1, 2, 3]),
        ([0, 0, 0], [1]),
        ([0, 1, 1, 2], [1, 2, 4]),
        ([0, 1, 1, 1, 2, 2, 5], [1, 2, 5, 7]),
        ([0, None, 2, 3], [1, 3, 4]),  # the second was removed from MLflow
    ],
)
def test_the_first_to_follow_a_record_counts(after: list[int | None], kept: list[int]) -> None:
    records = [record(number, each) for number, each in enumerate(after, start=1) if each is not None]
    assert [each.number for each in counted(reversed(records))] == kept


@given(st.lists(st.integers(0, 6), max_size=12))
def test_whoever_read_early_still_agrees_with_who_reads_late(behind: list[int]) -> None:
    """What counted once goes on counting, whatever stale records are appended."""
    records: list[Record] = []
    before: list[int] = []
    for number, stale in enumerate(behind, start=1):
        known = counted(records)
        known = known[: max(0, len(known) - stale)]  # what the writer had read
        records.append(record(number, known[-1].number if known else 0))
        now = [each.number for each in counted(records)]
        assert now[: len(before)] == before
        assert len(now) - len(before) == (0 if stale and before else 1)
        before = now


def move(action: Any, version: int, previous: int | None = None) -> Transition:
    return Transition(action, version, previous, "", "x", "")


@pytest.mark.parametrize(
    ("moves", "earlier"),
    [
        ([], []),
        ([move("promote", 1)], []),
        ([move("promote", 2, 1)], [1]),
        ([move("promote", 1), move("promote", 2), move("promote", 3), move("rollback", 2)], [1]),
        ([move("promote", 1), move("promote", 2), move("rollback", 1), move("promote", 3)], [1]),
    ],
)
def test_what_there_is_to_go_back_to(moves: list[Transition], earlier: list[int]) -> None:
    assert earlier_champions(moves) == earlier
