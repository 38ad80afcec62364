"""Artifacts that machines share, in an S3 server or a folder: what one uses, another does not remove."""

from __future__ import annotations

import gc
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.costs import Recorder, recording
from jora_tasks.lineage import PRESENT, SOURCE, trace
from jora_tasks.manifest import MANIFEST, parse_manifest
from jora_tasks.progress import Progress
from jora_tasks.registry import Registry
from jora_tasks.retention import Pruned, prune, shared
from jora_tasks.shared_store import ARTIFACTS, SharedStore
from jora_tasks.shared_work import keep
from tests.commands import ROOT
from tests.lines import make_chain, make_line
from tests.registry.registering import make_adapter, register
from tests.test_shared_store import build

DAYS = 7
LATER = time.time() + 30 * 86400

# Prunes and is killed at the n-th removal from the shared store: before it, after it, or in its middle.
KILLED = """
import os, signal, sys
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.retention import prune
from jora_tasks.shared_store import SharedStore
home, now, kill_at, when = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
left, remove = [kill_at], SharedStore.remove
def watched(self, *place):
    left[0] -= 1
    if left[0]:
        return remove(self, *place)
    if when == "after":
        remove(self, *place)
    if when == "amid":
        for file, _, _ in list(self.files(*place))[:1]:
            remove(self, *place, *file)
    os.kill(os.getpid(), signal.SIGKILL)
SharedStore.remove = watched
prune(ArtifactStore(home), keep_days=7, champions_only=False, now=now, remove=True)
"""


@pytest.fixture(params=["s3", "folder"])
def machine(
    request: Any, registry_store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Makes the store of a machine with a home of its own; all share artifacts and the registry."""
    folder = (tmp_path / "share").as_uri()
    monkeypatch.setenv(ARTIFACTS, request.getfixturevalue("s3") if request.param == "s3" else folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{registry_store.home}/mlflow/mlflow.db")
    return lambda name: ArtifactStore(tmp_path / name)


def pruned(store: ArtifactStore, now: float = LATER, remove: bool = True) -> Pruned:
    return prune(store, keep_days=DAYS, champions_only=False, now=now, remove=remove)


def after_this() -> float:
    """A time by which all so far is too old to stay, and nothing that comes is; S3 tells whole seconds."""
    moment = math.floor(time.time()) + 1
    time.sleep(moment - time.time() + 0.05)
    return moment + DAYS * 86400


def unused(artifact: Artifact) -> Artifact:
    """The same, which this process does not use any more."""
    gc.collect()  # frames of caught errors may keep a store
    return replace(artifact, _use=None)


def published(store: ArtifactStore) -> list[tuple[str, str]]:
    assert store.shared is not None
    return sorted(shared.survey(store.shared)[0])


def everything(store: ArtifactStore) -> list[Any]:
    """Every file that machines share, with its size and time."""
    assert store.shared is not None
    return list(store.shared.files())


def test_registered_and_latest_stay_and_the_rest_goes_from_every_place(machine: Callable[..., Any]) -> None:
    registered, other = unused(make_adapter(machine("one"), 1)), unused(make_adapter(machine("one"), 2))
    latest = unused(build(machine("one")))
    register(Registry(machine("one").home), registered)
    machine("one").set_latest("guide", latest)
    keep(machine("one").shared, "adapter", "0" * 16, registered.path, 1, ["README.md"])  # of a lost training
    assert pruned(machine("two"), now=time.time()).removals == []
    before = everything(machine("two"))
    shown = pruned(machine("two"), remove=False)
    assert everything(machine("two")) == before
    done = pruned(machine("two"))
    assert sorted(done.removals, key=str) == sorted(shown.removals, key=str)
    told = done.by_kind()["shared"]
    assert {kind: found["count"] for kind, found in told.items()} == {"adapter": 1, "work": 1}
    assert published(machine("two")) == [("adapter", registered.key), ("corpus", latest.key)]
    assert other.path.is_dir()  # the other machine's copy is for that machine
    assert {each.kind for each in pruned(machine("one")).removals} == {"adapter"}
    assert not other.path.exists()
    again = make_adapter(machine("one"), 2)
    assert not again.reused and machine("three").get("adapter", again.key).digest == other.digest


@pytest.fixture
def lines(machine: Callable[..., Any]) -> Callable[..., Any]:
    """Two registered versions with all that made them, and a chain that no one needs."""
    make_chain(machine("one"), 9, 8, "other")
    make_line(machine("one"), versions=2, documents=8)
    machine("one").shared.remove("latest", "other")
    gc.collect()
    return machine


def check_registered(store: ArtifactStore) -> None:
    """A machine that had nothing has each registered version whole; nothing published lacks its origin."""
    assert store.shared is not None
    there = set(published(store))
    for kind, key in there:
        manifest = parse_manifest(store.shared.manifest(kind, key) or b"")
        taken = {(each["kind"], each["key"]) for each in manifest["inputs"].values() if "key" in each}
        assert taken <= there
    for version in Registry(store.home).versions("tiny"):
        states, waiting = set(), [trace(store, store.get("adapter", version.key))]
        while waiting:
            states.add((node := waiting.pop())["state"])
            waiting += node.get("inputs", {}).values()
        assert states <= {PRESENT, SOURCE}


def test_what_registered_versions_were_made_from_stays(lines: Callable[..., Any]) -> None:
    assert len(published(lines("two"))) == 3 * 7
    before = everything(lines("two"))
    assert len(pruned(lines("two"), remove=False).removals) == 7
    assert everything(lines("two")) == before
    assert len(pruned(lines("two")).removals) == 7
    assert len(published(lines("two"))) == 2 * 7
    check_registered(lines("fresh"))
    assert pruned(lines("two")).removals == []


@pytest.mark.slow
def test_killed_again_and_again_it_leaves_no_gap_and_the_next_one_finishes(
    lines: Callable[..., Any], tmp_path: Path
) -> None:
    kept = {("adapter", version.key) for version in Registry(lines("two").home).versions("tiny")}
    kills = [(1, "before"), (1, "after"), (1, "amid"), (2, "amid"), (3, "after"), (4, "amid"), (2, "before")]
    for number, (kill_at, when) in enumerate(kills):
        program = [sys.executable, "-c", KILLED, str(tmp_path / "two"), str(LATER), str(kill_at), when]
        ended = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        check_registered(lines(f"fresh {number}"))
        shutil.rmtree(tmp_path / f"fresh {number}")
    assert pruned(lines("two")).removals
    assert kept <= set(published(lines("two"))) and len(published(lines("two"))) == 2 * 7
    check_registered(lines("fresh"))
    assert pruned(lines("two")).removals == []
    places = {parts[:3] for parts, _, _ in everything(lines("two")) if parts[0] == "artifacts"}
    assert len(places) == 2 * 7  # and nothing half-removed


def test_what_another_machine_used_stays(machine: Callable[..., Any]) -> None:
    made = unused(make_adapter(machine("one"), 1))
    now = after_this()
    assert make_adapter(machine("two"), 1).reused  # marks it for all
    assert pruned(machine("three"), now).removals == []
    now = after_this()
    machine("two").given_or_latest("guide", "adapter", made.key)
    assert pruned(machine("three"), now).removals == []
    assert [each.name for each in pruned(machine("three"), after_this()).removals] == [made.key]


def test_who_uses_it_between_the_look_and_the_removal_has_it(machine: Callable[..., Any]) -> None:
    """The other machine marks it at the last moment: after its manifest was removed."""
    made = unused(make_adapter(machine("one"), 1))
    store, removed = machine("two").shared, []

    class Late(SharedStore):
        def remove(self, *place: str) -> None:
            super().remove(*place)
            removed.append(place[-1])
            if place[-1] == MANIFEST:
                store.mark_used("adapter", made.key)

    before = after_this() - DAYS * 86400
    assert not shared.remove(Late(store.url), ("adapter", made.key), before)
    assert removed == [MANIFEST]
    assert machine("three").get("adapter", made.key).digest == made.digest


def test_who_finds_it_removed_while_fetching_makes_it_again(machine: Callable[..., Any]) -> None:
    made: Artifact = unused(make_adapter(machine("one"), 1))
    store = machine("two")
    fetch = store.shared.fetch

    def interrupted(*given: Any) -> None:
        shared.remove(machine("three").shared, ("adapter", made.key), LATER)
        fetch(*given)

    store.shared.fetch = interrupted
    again = make_adapter(store, 1)
    assert not again.reused and again.digest == made.digest
    assert published(machine("three")) == [("adapter", made.key)]


def test_records_of_costs_stay(machine: Callable[..., Any]) -> None:
    for name in ("one", "two"):
        with recording(Recorder(machine(name), "train", "tiny"), Progress()):
            unused(make_adapter(machine(name), 1))
    kept = [
        *[file for name in ("one", "two") for file in (machine(name).home / "costs").glob("*.jsonl")],
        *[parts for parts, _, _ in everything(machine("two")) if parts[0] == "costs"],
    ]
    assert len(kept) == 4 and pruned(machine("two")).removals
    assert [
        *[file for name in ("one", "two") for file in (machine(name).home / "costs").glob("*.jsonl")],
        *[parts for parts, _, _ in everything(machine("two")) if parts[0] == "costs"],
    ] == kept


def test_what_the_product_did_not_make_stays(machine: Callable[..., Any]) -> None:
    store = machine("one")
    for place in ("artifacts/notes/my notes", "artifacts/index/my index", "work/notes/0123456789abcdef"):
        store.shared.write(b"", *place.split("/"), "file")
    before = everything(store)
    assert len(before) == 3 and pruned(store).removals == [] and everything(store) == before
