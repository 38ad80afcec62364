"""`jora prune`: what is left afterwards is whole, whoever was killed, used something, or cannot be asked."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.errors import InputError, RunStopped
from jora_tasks.lineage import PRESENT, SOURCE, trace
from jora_tasks.manifest import MANIFEST
from jora_tasks.registry import Registry
from jora_tasks.retention import Pruned, prune
from jora_tasks.shared_store import ARTIFACTS
from tests.commands import ROOT, Commands
from tests.lines import make_chain, make_line

DAYS = 7
LATER = time.time() + 30 * 86400
KINDS = ("corpus", "index", "contexts", "prompts", "adapter", "evaluation", "verdict")

# Prunes a home and is killed before or after a rename of a folder or a deletion of a file, by its number.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.retention import prune
home, now, kill_at = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
left = [kill_at]
def watched(function):
    def call(*given, **named):
        for when in ("before", "after"):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*given, **named) if when == "before" else result
        return result
    return call
Path.rename, os.unlink = watched(Path.rename), watched(os.unlink)
prune(ArtifactStore(home), keep_days=7, champions_only=False, now=now, remove=True)
"""


@pytest.fixture
def store(registry_store: ArtifactStore) -> ArtifactStore:
    """A home with two registered versions, and a chain that is neither registered nor the latest."""
    making = ArtifactStore(registry_store.home)  # what it makes is used as long as it is there
    make_chain(making, 9, 8, "other")
    make_line(making, versions=2, documents=8)
    shutil.rmtree(making.home / "latest" / "other")
    return ArtifactStore(registry_store.home)


def pruned(store: ArtifactStore, now: float = LATER, **given: Any) -> Pruned:
    gc.collect()  # frames of caught errors may keep a store, and with it the use of what it gave
    asked = {"keep_days": DAYS, "champions_only": False, "remove": True, "now": now}
    return prune(ArtifactStore(store.home), **(asked | given))


def keys(store: ArtifactStore) -> dict[str, list[str]]:
    """Kind → keys of the artifacts that the home has."""
    return {kind: sorted(each.parent.name for each in files(store, kind)) for kind in KINDS}


def files(store: ArtifactStore, kind: str = "*") -> list[Path]:
    found = (store.home / "artifacts").glob(f"{kind}/*/{MANIFEST}")
    return sorted(file for file in found if not file.parent.name.startswith("."))


def age(home: Path) -> None:
    """As if all of it was made and used long ago."""
    for file in [*(home / "artifacts").glob(f"*/*/{MANIFEST}"), *(home / "locks").glob("*.use")]:
        os.utime(file, (0, 0))


def whole(store: ArtifactStore, version: int) -> bool:
    registered = Registry(store.home).get("tiny", version)
    assert registered is not None
    reader = ArtifactStore(store.home)
    states, waiting = set(), [trace(reader, reader.get("adapter", registered.key))]
    while waiting:
        states.add((node := waiting.pop())["state"])
        waiting += node.get("inputs", {}).values()
    return states <= {PRESENT, SOURCE}


def test_registered_versions_stay_whole_and_the_rest_goes(store: ArtifactStore) -> None:
    before = keys(store)
    assert pruned(store, remove=False).by_kind()["home"]["adapter"]["count"] == 1
    assert keys(store) == before
    done = pruned(store)
    assert {each.kind for each in done.removals} == set(KINDS) and len(done.removals) == 7
    assert all(len(found) == 2 for found in keys(store).values())
    for version in (1, 2):
        registered = Registry(store.home).get("tiny", version)
        assert registered is not None
        assert ArtifactStore(store.home).get("adapter", registered.key).digest == registered.digest
        assert whole(store, version)


def test_nothing_young_goes_and_use_makes_young(store: ArtifactStore) -> None:
    assert pruned(store, now=time.time()).removals == []
    [verdict] = set(keys(store)["verdict"]) - {
        each.tags["jora.verdict_key"] for each in Registry(store.home).versions("tiny")
    }
    other = ArtifactStore(store.home)
    used = other.get("verdict", verdict)
    age(store.home)
    assert pruned(store, now=time.time()).removals == []  # as long as the store is there that gave it
    del other, used
    age(store.home)
    ArtifactStore(store.home).get("verdict", verdict)  # used just now, by none any more
    assert pruned(store, now=time.time()).removals == []


def test_with_keep_champions_only_those_stay_that_someone_points_at(store: ArtifactStore) -> None:
    registry = Registry(store.home)
    registry.promote("tiny", 1, by="tests", reason="the first")
    registry.promote("tiny", 2, by="tests", reason="the second")
    # Registers 1 and 2 again, as 3 and 4, and a new one as 5.
    make_line(ArtifactStore(store.home), versions=3, documents=8)
    for file in (store.home / "latest").glob("*/*"):
        file.unlink()
    pruned(store, champions_only=True)
    kept = {registry.get("tiny", version).key for version in (1, 2)}
    assert set(keys(store)["adapter"]) == kept
    registry.set_alias("tiny", "staging", 5)  # people's own count as well
    make_chain(ArtifactStore(store.home), 3, 8, "again")
    shutil.rmtree(store.home / "latest" / "again")
    pruned(store, champions_only=True)
    assert set(keys(store)["adapter"]) == kept | {registry.get("tiny", 5).key}


def test_an_adapter_that_another_home_made_keeps_its_prompts_here(store: ArtifactStore) -> None:
    adapter, evaluation, verdict = make_chain(ArtifactStore(store.home), 9, 8, "other")
    prompts = adapter.manifest["inputs"]["prompts"]["digest"]
    del adapter, evaluation, verdict
    shutil.rmtree(store.home / "latest")
    Registry(store.home)._client().create_registered_model("far")
    tags = {"jora.adapter_digest": "sha256:far", "jora.adapter_key": "f" * 16}
    tags["jora.prompts_digest"] = prompts
    Registry(store.home)._client().create_model_version("far", source="file:///far", tags=tags)
    pruned(store)
    found = keys(store)
    assert len(found["adapter"]) == 2 and len(found["prompts"]) == len(found["corpus"]) == 3


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_no_gap_and_the_next_one_finishes(
    store: ArtifactStore, tmp_path: Path
) -> None:
    expected = {version: Registry(store.home).get("tiny", version).key for version in (1, 2)}
    for kill_at in (1, 2, 3, 4, 9, 14, 25):
        home = tmp_path / f"home {kill_at}"
        shutil.copytree(store.home, home)
        program = [sys.executable, "-c", KILLED, str(home), str(LATER), str(kill_at)]
        assert subprocess.run(program, cwd=ROOT).returncode == -signal.SIGKILL
        copy = ArtifactStore(home)
        for manifest in files(copy):  # what is there is whole, down to the documents
            artifact = copy.get(manifest.parents[1].name, manifest.parent.name)
            for reference in artifact.manifest["inputs"].values():
                assert "key" not in reference or copy.get(reference["kind"], reference["key"])
        del copy, artifact
        pruned(ArtifactStore(home))
        assert all(len(found) == 2 for found in keys(ArtifactStore(home)).values())
        assert set(keys(ArtifactStore(home))["adapter"]) == set(expected.values())
        left = [each for each in (home / "artifacts").glob("*/*") if each.name.startswith(".")]
        assert left == [] and pruned(ArtifactStore(home)).removals == []


def test_two_at_once_remove_each_thing_once(store: ArtifactStore) -> None:
    done: list[Pruned] = []
    threads = [threading.Thread(target=lambda: done.append(pruned(store))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(each.removals) for each in done) == [0, 7]


@pytest.mark.parametrize("trouble", ["no server", "no database", "another registry"])
def test_without_the_registry_nothing_goes(
    store: ArtifactStore, commands: Commands, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, environment = keys(store), {"JORA_HOME": store.home}
    if trouble == "no server":
        environment["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    elif trouble == "no database":
        (store.home / "mlflow" / "artifacts").mkdir(exist_ok=True)
        (store.home / "mlflow" / "mlflow.db").unlink()
    else:
        moves = store.home / "openlineage" / "moves"
        moves.mkdir(parents=True)
        (moves / "tiny.0123456789abcdef.lock").touch()
    ended = commands.run("prune", "--yes", "--keep-days", "1", **environment)
    assert ended.code == 1 and "Nothing was removed" in ended.last_line, ended.stderr
    assert {"no server": "start the server", "no database": "restore", "another registry": "in another"}[
        trouble
    ] in ended.last_line
    assert keys(store) == before


@pytest.mark.parametrize("sign", ["openlineage/moves/tiny.lock", "locks/mlflow", "provenance/0/statement"])
def test_a_registry_that_was_lost_stops_it_and_one_that_never_was_does_not(
    store: ArtifactStore, commands: Commands, sign: str
) -> None:
    shutil.rmtree(store.home / "mlflow")
    (store.home / "locks" / "mlflow").unlink(missing_ok=True)
    (store.home / sign).parent.mkdir(parents=True, exist_ok=True)
    (store.home / sign).touch()
    before = files(store)
    for _ in range(2):  # gone, then an empty folder
        ended = commands.run("prune", "--yes", "--keep-days", "1", JORA_HOME=store.home)
        assert ended.code == 1 and "Nothing was removed" in ended.last_line, ended.stderr
        assert f"{store.home / sign}".removesuffix("/statement") in ended.last_line
        assert "restore it, or move" in ended.last_line and files(store) == before
        (store.home / "mlflow").mkdir(exist_ok=True)
    (store.home / sign).unlink()
    assert len(pruned(store).removals) == 14  # of three chains the latest stays


def test_a_registry_that_was_begun_anew_stops_it(store: ArtifactStore, empty_registry: Path) -> None:
    moves = store.home / "openlineage" / "moves"
    moves.mkdir(parents=True)
    (moves / "tiny.lock").touch()
    assert len(pruned(store).removals) == 7
    shutil.copy(empty_registry, store.home / "mlflow")
    before = files(store)
    with pytest.raises(RunStopped, match="registry has none of it"):
        pruned(store)
    assert files(store) == before


def test_where_there_is_no_home_none_is_made(commands: Commands, tmp_path: Path) -> None:
    ended = commands.run("prune", JORA_HOME=tmp_path / "no" / "such")
    assert (ended.code, ended.stdout) == (2, "") and "no/such does not exist" in ended.last_line
    assert list(tmp_path.iterdir()) == []


def test_what_the_product_did_not_make_or_lies_behind_a_link_stays(
    store: ArtifactStore, tmp_path: Path
) -> None:
    home, other = store.home, tmp_path / "other"
    pruned(store)
    mine = [
        home / "artifacts" / "notes" / "my notes",
        home / "artifacts" / "notes" / "0123456789abcdef",
        home / "artifacts" / "notes" / ".my notes.tmp-01234567",
        home / "artifacts" / "index" / "my index",
        home / "work" / "notes" / "0123456789abcdef",
        home / "work" / "adapter" / "my adapter",
    ]
    linked = [
        (home / "work" / "index", other / "work"),
        (home / "runs", other / "runs"),
        (home / "artifacts" / "retrieved", other / "retrieved"),
    ]
    for place, target in linked:
        target.mkdir(parents=True)
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(target)
    mine += [
        other / "work" / "0123456789abcdef",
        other / "runs" / "adapter_training" / "manual__1" / "jobs" / "train",
        other / "retrieved" / "0123456789abcdef",
        other / "retrieved" / ".0123456789abcdef.tmp-01234567",
    ]
    for folder in mine:
        folder.mkdir(parents=True)
        (folder / "job.json").write_text("12345")
    assert pruned(store).removals == [] and all(folder.is_dir() for folder in mine)


def test_what_lies_behind_a_link_keeps_what_it_was_made_from(store: ArtifactStore, tmp_path: Path) -> None:
    (store.home / "artifacts" / "evaluation").rename(tmp_path / "evaluation")
    (store.home / "artifacts" / "evaluation").symlink_to(tmp_path / "evaluation")
    assert [each.kind for each in pruned(store).removals] == ["verdict"]
    assert {kind: len(found) for kind, found in keys(store).items()} == dict.fromkeys(KINDS, 3) | {
        "verdict": 2
    }


def test_what_is_needed_and_does_not_tell_its_origin_stops_it(store: ArtifactStore) -> None:
    registered = Registry(store.home).get("tiny", 1)
    adapter = ArtifactStore(store.home).get("adapter", registered.key)
    [prompts] = [each for each in adapter.manifest["inputs"].values() if each["kind"] == "prompts"]
    (store.home / "artifacts" / "prompts" / prompts["key"] / MANIFEST).write_text("{")
    before = sorted((store.home / "artifacts").rglob("*"))
    with pytest.raises(RunStopped, match=f"{prompts['key']} is needed.*run `jora prompts` again"):
        pruned(store)
    assert sorted((store.home / "artifacts").rglob("*")) == before


def test_what_killed_processes_left_goes_when_it_is_old(store: ArtifactStore) -> None:
    home = store.home
    pruned(store)
    folders = {
        "work": home / "work" / "adapter" / "0123456789abcdef",
        "jobs": home / "runs" / "adapter_training" / "manual__1" / "jobs" / "train",
    }
    for kind, folder in folders.items():
        folder.mkdir(parents=True)
        (folder / ("job.json" if kind == "jobs" else "part")).write_text("12345")
    assert pruned(store, now=time.time()).removals == []
    busy = ArtifactStore(home)
    busy.uses.use("adapter", folders["work"].name)  # as who builds it does
    with (folders["jobs"] / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the keeper of a job that is alive
        assert pruned(store).removals == []
    del busy
    folders["unfinished"] = home / "artifacts" / "index" / ".0123456789abcdef.tmp-01234567"
    folders["unfinished"].mkdir()
    (folders["unfinished"] / "part").write_text("12345")
    busy = ArtifactStore(home)
    busy.uses.use("index", "0123456789abcdef")
    assert {each.kind for each in pruned(store, remove=False).removals} == {"work", "jobs"}
    del busy
    assert {each.kind: each.size for each in pruned(store).removals} == dict.fromkeys(folders, 5)
    assert not any(folder.exists() for folder in folders.values())
    assert (home / "runs" / "adapter_training" / "manual__1").is_dir()


def test_machines_that_share_artifacts_must_share_the_registry(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ARTIFACTS, (tmp_path / "share").as_uri())
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI"):
        pruned(store)


@pytest.mark.slow
def test_the_command_prunes_a_real_home_and_a_run_makes_again_what_went(
    commands: Commands, finished_home: Path, tiny_project: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(finished_home, home)
    environment = {"JORA_HOME": home}

    age(home)
    asked = ("prune", "--keep-days", "1", "--yes", "--json")
    assert commands.run(*asked, **environment).result["items"] == []
    adapter = Registry(home).get("tiny", 1).key
    assert commands.run("lineage", adapter, "--verify", **environment).code == 0
    Registry(home)._client().delete_model_version("tiny", "1")
    shutil.rmtree(home / "latest")
    age(home)
    told = commands.run(*asked, **environment).result
    assert (
        told["removed"] and told["kept"] == {"home": 0} and told["by_kind"]["home"]["adapter"]["count"] == 1
    )
    assert not list((home / "artifacts").glob(f"*/*/{MANIFEST}"))
    again = commands.run("run", "--spec", tiny_project, "--json", **environment).result
    assert {stage["state"] for stage in again["stages"]} == {"built"}
    assert (
        commands.run("lineage", Registry(home).versions("tiny")[-1].key, "--verify", **environment).code == 0
    )
    text = commands.run("prune", **environment).stdout
    assert "Nothing to remove." in text and json.dumps(str(home))[1:-1] in text
