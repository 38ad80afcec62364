"""The wall clock set back and forward by years, before and within stages, by `tests.clock`."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jora_tasks.artifacts import STAGE_OF, ArtifactStore
from jora_tasks.digests import digest_file
from jora_tasks.registry import Registry
from tests.clock import YEAR, Clock, make_clock
from tests.commands import ROOT, Commands

AHEAD = (0, -YEAR, YEAR, -2 * YEAR)
CHAMPIONS = """
import sys
from pathlib import Path
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.registry import Registry
from tests.clock import YEAR, Clock
from tests.registry.registering import make_adapter, register
store, clock = ArtifactStore(sys.argv[1]), Clock(Path(sys.argv[2]), {})
registry, who = Registry(store.home), {"by": "tests", "reason": "to see"}
moves = [lambda version=version: registry.promote("documents", version, **who) for version in (1, 3, 2)]
for number, years in enumerate((0, -1, 1), start=1):
    clock.set(years * YEAR)
    assert register(registry, make_adapter(store, number)) == number
for years, move in zip((-1, 1, -2, 0), [*moves, lambda: registry.rollback("documents", **who)]):
    clock.set(years * YEAR)
    move()
"""


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return make_clock(tmp_path)


@pytest.fixture
def jumping(clock: Clock) -> Iterator[None]:
    """Sets the clock anew all the while."""
    over = threading.Event()

    def jump() -> None:
        while not over.wait(random.uniform(0.05, 0.5)):
            clock.set(random.choice(AHEAD))

    thread = threading.Thread(target=jump)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.slow
def test_a_whole_run_while_the_clock_jumps_makes_what_an_undisturbed_one_does(
    clock: Clock, jumping: None, finished_home: Path, tiny_project: Path, tmp_path: Path
) -> None:
    store, undisturbed = ArtifactStore(tmp_path / "home"), ArtifactStore(finished_home)
    progress = tmp_path / "progress.jsonl"
    with Commands(environment=clock.environment) as commands:
        ended = commands.run(
            "run", "--spec", tiny_project, "--json", JORA_HOME=store.home, JORA_PROGRESS=progress
        )
        assert ended.code == 0, ended.stderr
        again = commands.run("run", "--spec", tiny_project, "--json", JORA_HOME=store.home)
    assert {stage["state"] for stage in again.result["stages"]} == {"reused"}
    times = [json.loads(line)["time"] for line in progress.read_text().splitlines()]
    assert max(times) - min(times) > 300 * 86400  # it did jump
    for kind in ("corpus", "index", "contexts", "prompts"):
        assert store.latest("tiny", kind).digest == undisturbed.latest("tiny", kind).digest
    for kind, name in (("adapter", "adapter_model.safetensors"), ("evaluation", "predictions.parquet")):
        one, other = (each.latest("tiny", kind).file(name) for each in (store, undisturbed))
        assert digest_file(one) == digest_file(other)
    for kind in STAGE_OF:
        assert 0 <= store.latest("tiny", kind).manifest["seconds"] < 600
    assert [each.version for each in Registry(store.home).versions("tiny")] == [1]


@pytest.mark.slow
def test_versions_and_champions_are_in_order_whatever_the_clock_said(
    clock: Clock, registry_store: ArtifactStore
) -> None:
    arguments = [str(registry_store.home), str(clock.file)]
    subprocess.run(
        [sys.executable, "-c", CHAMPIONS, *arguments],
        env=os.environ | clock.environment,
        cwd=ROOT,
        check=True,
    )
    registry = Registry(registry_store.home)
    assert [each.version for each in registry.versions("documents")] == [1, 2, 3]
    moves = registry.transitions("documents")
    assert [(move.action, move.version) for move in moves] == [
        ("promote", 1),
        ("promote", 3),
        ("promote", 2),
        ("rollback", 3),
    ]
    assert [move.at for move in moves] != sorted(move.at for move in moves)  # it did jump
    champion = registry.get_champion("documents")
    assert champion is not None and champion.version == 3
