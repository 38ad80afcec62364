"""A home keeps copies of shared artifacts up to a size, and none goes while someone reads it."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from jora_tasks.artifacts import Artifact, ArtifactStore, Source
from jora_tasks.copies import LIMIT
from jora_tasks.errors import InputError
from jora_tasks.manifest import MANIFEST
from jora_tasks.shared_store import ARTIFACTS

DOCUMENTS = Source("documents", "guide", "sha256:d")
UNIT = 10_000  # bytes, well above a manifest's


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    made = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    made.start()
    host, port = made.get_host_and_port()
    yield f"http://{host}:{port}"
    made.stop()


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    """What was there before, whole libraries, is not gone through each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=["folder", "s3"])
def share(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "folder":
        url = (tmp_path / "share").as_uri()
    else:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "worker")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-worker")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("server"))
        fsspec.filesystem("s3").clear_instance_cache()
        fsspec.filesystem("s3").makedirs("copies", exist_ok=True)
        url = "s3://copies/shared"
    monkeypatch.setenv(ARTIFACTS, url)
    return url


def limited(home: Path, units: float | None) -> ArtifactStore:
    """A home's store that keeps so much; None for all. What is not held any more is let go before."""
    gc.collect()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LIMIT, "" if units is None else str(units * UNIT / 1e9))
        return ArtifactStore(home)


def build(store: ArtifactStore, number: int, units: int = 1, kind: str = "index") -> Artifact:
    def write(folder: Path) -> Mapping[str, Any]:
        content = random.Random(number).randbytes(units * UNIT)
        (folder / "index.faiss").write_bytes(content[: UNIT // 2])
        (folder / "rows").mkdir()
        (folder / "rows" / "chunks.parquet").write_bytes(content[UNIT // 2 :])
        return {}

    given = {"number": number, "units": units}
    return store.build(kind, version=1, settings=given, inputs={"documents": DOCUMENTS}, write=write)


def kept(home: Path) -> dict[str, int]:
    """Key → bytes of the artifacts in a home."""
    manifests = (home / "artifacts").glob(f"*/[!.]*/{MANIFEST}")
    return {
        file.parent.name: sum(each.stat().st_size for each in file.parent.rglob("*") if each.is_file())
        for file in manifests
    }


def leftovers(home: Path) -> list[Path]:
    return list((home / "artifacts").glob("*/.*"))


def test_what_was_used_longest_ago_goes_and_is_fetched_again(share: str, tmp_path: Path) -> None:
    keys = [build(limited(tmp_path / "one", None), number).key for number in range(5)]
    home = tmp_path / "two"
    for key in (*keys[:3], keys[0], keys[3]):
        limited(home, 3.5).get("index", key)
    assert kept(home).keys() == {keys[2], keys[0], keys[3]}  # the second was used longest ago
    store = limited(home, 3.5)
    again = store.get("index", keys[1])
    assert again.file("index.faiss").read_bytes() == random.Random(1).randbytes(UNIT)[: UNIT // 2]
    assert store.shared and store.shared.fetched == UNIT
    assert kept(home).keys() == {keys[0], keys[3], keys[1]} and not leftovers(home)


def test_what_is_made_here_counts_once_it_is_published(share: str, tmp_path: Path) -> None:
    home = tmp_path / "one"
    keys = [build(limited(home, 2.5), number).key for number in range(4)]
    assert kept(home).keys() == set(keys[2:])
    assert limited(home, None).get("index", keys[0]).reused


def test_what_the_store_has_not_stays(share: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "one"
    with monkeypatch.context() as alone:
        alone.delenv(ARTIFACTS)
        own = [build(ArtifactStore(home), number).key for number in range(3)]
    other = build(limited(home, 0), 7)
    assert kept(home).keys() == {*own, other.key}  # the last is in use
    changed = home / "artifacts" / "index" / own[0] / MANIFEST
    store = limited(home, None)
    build(store, 0)  # published now
    changed.write_text(json.dumps(json.loads(changed.read_text()) | {"seconds": 5.0}))  # another's, it seems
    del store, other
    build(limited(home, 0), 8)
    assert set(own) <= kept(home).keys() and len(kept(home)) == 4


def test_an_artifact_lives_as_long_as_it_is_held(share: str, tmp_path: Path) -> None:
    home = tmp_path / "one"
    held = build(limited(home, 0), 0)
    build(limited(home, 0), 1)
    assert held.file("index.faiss").is_file()
    copy = held.recounted({"n": 1})
    del held
    build(limited(home, 0), 2)
    assert copy.file("index.faiss").is_file()
    key = copy.key
    del copy
    last = build(limited(home, 0), 3)
    assert kept(home).keys() == {last.key} and key != last.key


READER = """
import sys
from jora_tasks.artifacts import ArtifactStore
artifact = ArtifactStore().get("index", sys.argv[1])
print("has it", flush=True)
sys.stdin.readline()
data = artifact.file("rows/chunks.parquet").read_bytes()  # opened only now
print(len(data), flush=True)
"""


@contextlib.contextmanager
def process(code: str, home: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "JORA_HOME": str(home), **variables}
    made = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield made
    finally:
        made.kill()
        made.wait()


@pytest.mark.parametrize("share", ["folder"], indirect=True)
def test_what_another_process_reads_stays_until_it_ends(share: str, tmp_path: Path) -> None:
    home = tmp_path / "one"
    key = build(limited(home, None), 0).key
    with process(READER, home, key) as reader:
        assert reader.stdin and reader.stdout and reader.stdout.readline() == "has it\n"
        build(limited(home, 0), 1)
        assert key in kept(home)
        reader.stdin.write("\n")
        reader.stdin.flush()
        assert reader.stdout.readline() == f"{UNIT // 2}\n"
        assert key in kept(home)
    build(limited(home, 0), 2)
    assert key not in kept(home)


REMOVER = """
import sys
from jora_tasks.artifacts import ArtifactStore
print("begins", flush=True)
while True:
    for key in sys.argv[1:]:
        artifact = ArtifactStore().get("index", key)
        del artifact
"""


@pytest.mark.parametrize("share", ["folder"], indirect=True)
def test_a_remover_killed_at_any_moment_leaves_whole_artifacts(share: str, tmp_path: Path) -> None:
    keys = [build(limited(tmp_path / "one", None), number, units=20).key for number in range(3)]
    home, chance = tmp_path / "two", random.Random(0)
    for _ in range(6):
        with process(REMOVER, home, *keys, **{LIMIT: str(25 * UNIT / 1e9)}) as remover:
            assert remover.stdout and remover.stdout.readline() == "begins\n"
            time.sleep(chance.uniform(0, 0.3))
            remover.send_signal(signal.SIGKILL)
        store = limited(home, None)
        for key in kept(home):
            assert store.get("index", key).path.is_dir() and store.shared and not store.shared.fetched
        del store
    last = limited(home, 25).get("index", keys[0])
    assert kept(home).keys() == {last.key} and not leftovers(home)


@pytest.mark.parametrize("share", ["folder"], indirect=True)
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    limit=st.integers(0, 8),
    steps=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=12),
)
def test_a_home_is_within_its_limit_or_in_use(
    share: str, tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int, steps: list[Any]
) -> None:
    """After each step the copies that no one holds are within the limit, and are those used last."""
    home = tmp_path_factory.mktemp("home")
    maker = limited(tmp_path_factory.getbasetemp() / "maker", None)
    keys = [build(maker, number, units).key for number, units in enumerate(sizes)]
    held: dict[str, Artifact] = {}
    used: list[str] = []
    for number, hold in steps:
        key = keys[number % len(keys)]
        held.pop(key, None)
        artifact = limited(home, limit).get("index", key)
        used = [*(each for each in used if each != key), key]
        now = kept(home)
        assert held.keys() | {key} <= now.keys()
        free = [each for each in used if each in now and each not in held and each != key]
        assert not free or sum(now.values()) <= limit * UNIT
        # Of those no one holds, none stays that was used before one that went.
        if free:
            oldest = used.index(free[0])
            assert all(each in now for each in used[oldest:])
        if hold:
            held[key] = artifact
        del artifact
    assert not leftovers(home)


def test_a_limit_that_is_no_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, "much")
    with pytest.raises(InputError, match=f"{LIMIT} 'much' is no number from 0 on"):
        ArtifactStore(tmp_path)


def test_without_a_limit_all_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ARTIFACTS, (tmp_path / "share").as_uri())
    for number in range(4):
        build(ArtifactStore(tmp_path / "one"), number)
    assert len(kept(tmp_path / "one")) == 4
