"""Events of stages run by hand and of the champion's moves: valid, in the outbox, each once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openlineage.client.serde import Serde

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.events import tell_moves, tell_moves_here, tell_stage
from jora_tasks.lineage import events_file
from jora_tasks.registry import Registry
from tests.chain import make_adapter
from tests.openlineage_spec import problems
from tests.registry.registering import make_adapter as small_adapter
from tests.registry.registering import register


def told(store: ArtifactStore) -> list[dict[str, Any]]:
    return [json.loads(line) for line in events_file(store.home).read_text().splitlines()]


def moved(store: ArtifactStore) -> Registry:
    """A line whose champion was promoted twice and rolled back once."""
    registry = Registry(store.home)
    for seed in (1, 2):
        register(registry, small_adapter(store, seed))
        registry.promote("documents", seed, by="anna", reason=f"better {seed}", verdict="abc")
    registry.rollback("documents", by="ben", reason="complaints")
    return registry


def test_moves_are_told_once_and_in_order(registry_store: ArtifactStore) -> None:
    store = registry_store
    registry = moved(store)
    tell_moves_here(store, "documents")
    tell_moves_here(store, "documents")
    events = told(store)
    assert [problem for event in events for problem in problems(event)] == []
    assert [event["job"]["name"] for event in events] == ["jora.promote", "jora.promote", "jora.rollback"]
    versions = [
        [each["facets"]["version"]["datasetVersion"] for each in (*event["inputs"], *event["outputs"])]
        for event in events
    ]
    assert versions == [["1", "1"], ["2", "2"], ["1", "1"]]
    assert {event["outputs"][0]["name"] for event in events} == {"champion/documents"}
    tags = {each["key"]: each["value"] for each in events[-1]["run"]["facets"]["tags"]["tags"]}
    assert tags == {"by": "ben", "reason": "complaints", "previous": "2"}
    registry.promote("documents", 2, by="anna", reason="mended")
    tell_moves_here(store, "documents")
    assert [event["run"]["runId"] for event in told(store)[:3]] == [event["run"]["runId"] for event in events]
    assert len({event["run"]["runId"] for event in told(store)}) == len(told(store)) == 4


def test_a_telling_that_broke_off_is_gone_on_with(registry_store: ArtifactStore) -> None:
    moved(registry_store)
    heard: list[dict[str, Any]] = []

    def emit(event: Any) -> None:
        if len(heard) == 1:
            heard.append({})
            raise OSError("disk full")
        heard.append(json.loads(Serde.to_json(event)))

    with pytest.raises(OSError, match="disk full"):
        tell_moves(registry_store, "documents", emit)
    assert tell_moves(registry_store, "documents", emit) == 2
    assert [event["job"]["name"] for event in heard if event] == [
        "jora.promote", "jora.promote", "jora.rollback",
    ]  # fmt: skip


def test_a_stage_run_by_hand_is_told(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "home")
    adapter = make_adapter(store)
    result = {"stage": "train", "kind": "adapter", "key": adapter.key, "seconds": 2.5}
    tell_stage(store, result, {}, "/srv/guide")
    start, complete = told(store)
    assert problems(start) == problems(complete) == []
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == complete["run"]["runId"]
    assert complete["outputs"][0]["facets"]["version"]["datasetVersion"] == adapter.digest
    assert start["eventTime"] < complete["eventTime"]


def test_a_telling_that_fails_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ArtifactStore(tmp_path / "home")
    tell_stage(store, {"stage": "train", "kind": "adapter", "key": "gone", "seconds": 1.0}, {})
    assert "could not be told" in caplog.text
