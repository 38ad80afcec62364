"""Random graphs of real artifacts, registered versions, ages and uses: what stays is what is needed."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.manifest import MANIFEST
from jora_tasks.registry import CANDIDATE, DIGEST, KEY, Registry
from jora_tasks.retention import prune
from jora_tasks.retention.graph import dependants_first

DAYS, NOW = 7, time.time()
KINDS = ("corpus", "prompts", "adapter", "predictions")
STATES = ("plain", "plain", "plain", "young", "latest", "held", "registered", "digest", "alias", "champion")
REGISTERED = ("registered", "digest", "alias", "champion")


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Path:
    """A home whose registry serves every example: opening one takes seconds."""
    home = tmp_path_factory.mktemp("graphs") / "home"
    (home / "mlflow").mkdir(parents=True)
    shutil.copy(empty_registry, home / "mlflow")
    return home


@st.composite
def graphs(draw: st.DrawFn) -> list[tuple[str, list[int], str]]:
    """Nodes of a kind, made from some nodes before them, in a state."""
    count = draw(st.integers(1, 14))
    return [
        (
            draw(st.sampled_from(KINDS)),
            draw(st.lists(st.integers(0, number - 1), max_size=3, unique=True)) if number else [],
            draw(st.sampled_from(STATES)),
        )
        for number in range(count)
    ]


@contextlib.contextmanager
def built(home: Path, graph: list[tuple[str, list[int], str]]) -> Iterator[list[Artifact]]:
    """The graph's artifacts and what its states ask for, in an otherwise empty home."""
    for name in ("artifacts", "latest"):
        shutil.rmtree(home / name, ignore_errors=True)
    store, holder, registry = ArtifactStore(home), ArtifactStore(home), Registry(home)
    client, made = registry._client(), []
    for number, (kind, inputs, state) in enumerate(graph):

        def write(folder: Path, number: int = number) -> dict[str, Any]:
            (folder / "file").write_text(str(number))
            return {}

        taken = {f"input {each}": made[each] for each in inputs}
        made.append(store.build(kind, version=1, settings={"n": number}, inputs=taken, write=write))
        if state == "latest":
            store.set_latest("line", made[-1])
    for artifact, (_, _, state) in zip(made, graph, strict=True):
        if state in REGISTERED:
            tags = {DIGEST: artifact.digest} | ({} if state == "digest" else {KEY: artifact.key})
            with contextlib.suppress(Exception):
                client.create_registered_model("line")
            version = int(client.create_model_version("line", source="file:///none", tags=tags).version)
            if state == "alias":
                registry.set_alias("line", CANDIDATE, version)
            if state == "champion":
                registry.promote("line", version, by="tests", reason="to see")
    made = [replace(each, _use=None) for each in made]  # which it used, as the store does
    del store, taken
    gc.collect()  # frames of caught errors may keep them
    for artifact, (_, _, state) in zip(made, graph, strict=True):
        if state == "held":
            holder.get(artifact.kind, artifact.key)
        used = NOW - (DAYS - 0.5 if state == "young" else DAYS + 0.5) * 86400
        os.utime(artifact.file(MANIFEST), (used, used))
        os.utime(home / "locks" / f"{artifact.kind}-{artifact.key}.use", (used, used))
    yield made
    for name in ("line", "line.champions"):
        with contextlib.suppress(Exception):
            client.delete_registered_model(name)


def needed(graph: list[tuple[str, list[int], str]], champions_only: bool) -> set[int]:
    """The numbers of the nodes that must stay, told in the plainest way."""
    roots = {number for number, (_, _, state) in enumerate(graph) if state in ("young", "held")}
    for kind in KINDS:  # of a kind, the one that was made last is the latest
        roots |= {max((n for n, (k, _, s) in enumerate(graph) if (k, s) == (kind, "latest")), default=-1)}
    aliased = [number for number, (_, _, state) in enumerate(graph) if state == "alias"]
    for number, (_, _, state) in enumerate(graph):
        wanted = state == "champion" or (number in aliased[-1:]) or not champions_only
        if state in REGISTERED and wanted:
            roots.add(number)
    roots.discard(-1)
    while True:
        more = roots | {each for number in roots for each in graph[number][1]}
        if more == roots:
            return roots
        roots = more


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(graph=graphs(), champions_only=st.booleans())
def test_what_is_needed_stays_and_all_else_that_is_old_goes(
    shared_home: Path, graph: list[tuple[str, list[int], str]], champions_only: bool
) -> None:
    with built(shared_home, graph) as made:
        asked: dict[str, Any] = {"keep_days": DAYS, "champions_only": champions_only, "now": NOW}
        expected = {made[number].path for number in needed(graph, champions_only)}
        shown = prune(ArtifactStore(shared_home), **asked, remove=False)
        assert all(each.path.is_dir() for each in made)
        done = prune(ArtifactStore(shared_home), **asked, remove=True)
        assert {each.path for each in made if each.path.is_dir()} == expected
        assert shown.removals == done.removals and len(done.removals) == len(made) - len(expected)
        assert shown.kept == done.kept == {"home": len(expected)}
        for each in made:
            if each.path in expected:
                assert ArtifactStore(shared_home).get(each.kind, each.key).digest == each.digest
        assert prune(ArtifactStore(shared_home), **asked, remove=True).removals == []


@given(graph=graphs())
def test_nothing_goes_before_what_was_made_from_it(graph: list[tuple[str, list[int], str]]) -> None:
    inputs = {("x", str(n)): {("x", str(each)) for each in taken} for n, (_, taken, _) in enumerate(graph)}
    order = dependants_first(set(inputs), inputs)
    assert sorted(order) == sorted(inputs)
    for name, taken in inputs.items():
        assert all(order.index(each) > order.index(name) for each in taken)
