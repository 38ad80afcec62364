"""Records of costs that machines share: each is there once, whoever was away, killed or copied."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import pytest

from jora_tasks import costs
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.costs import Cost, Recorder, recording, sharing
from jora_tasks.progress import BUILT, Progress
from jora_tasks.shared_store import ARTIFACTS, SharedStore
from tests.commands import ROOT


@pytest.fixture(params=["s3", "folder"])
def url(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    found = request.getfixturevalue("s3") if request.param == "s3" else (tmp_path / "share").as_uri()
    monkeypatch.setenv(ARTIFACTS, found)
    return found


@pytest.fixture
def ends(tmp_path: Path, url: str) -> Callable[..., str]:
    """Ends a stage in a home of this name, and gives the id of its record."""

    def end(name: str, stage: str = "train") -> str:
        with recording(recorder := Recorder(ArtifactStore(tmp_path / name), stage, "tiny"), Progress()):
            recorder.state = BUILT
        return recorder.id

    return end


def seen(home: Path, url: str) -> list[str]:
    """The ids of the records that the pages of another home count."""
    return sorted(cost.id for cost in found(home, url))


def found(home: Path, url: str) -> Iterator[Cost]:
    shared, known = SharedStore(url), set()
    for month in costs.shared_months(shared):
        costs.fetch(home, shared, month)
        for file in costs.copies(home, shared, month):
            for line in file.read_bytes().splitlines():
                if (cost := costs.parse(line)) and cost.id not in known:
                    known.add(cost.id)
                    yield cost


def pieces(url: str) -> list[str]:
    return ["/".join(parts) for parts, _, _ in SharedStore(url).files("costs")]


def test_the_records_of_every_home_are_seen_from_another(
    ends: Callable[..., str], url: str, tmp_path: Path
) -> None:
    made = []
    for _ in range(3):
        made += [ends("one"), ends("two")]
        assert seen(tmp_path / "pages", url) == sorted(made)
    assert len(pieces(url)) == 2  # one of each home, which got longer
    with (
        pytest.raises(OSError),
        recording(Recorder(ArtifactStore(tmp_path / "one"), "index", "a"), Progress()),
    ):
        raise OSError
    assert sorted(cost.state for cost in found(tmp_path / "pages", url)) == ["built"] * 6 + ["failed"]


def test_what_has_not_changed_is_not_fetched_again(
    ends: Callable[..., str], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "FULL", 500)  # two records
    made, read = [ends("one") for _ in range(5)], []
    reading = SharedStore.read
    monkeypatch.setattr(
        SharedStore,
        "read",
        lambda self, *place, **size: read.append(place[-1]) or reading(self, *place, **size),
    )
    assert seen(tmp_path / "pages", url) == sorted(made) and len(read) == len(pieces(url)) == 3
    read.clear()
    assert seen(tmp_path / "pages", url) == sorted(made) and read == []
    made.append(ends("one"))
    assert seen(tmp_path / "pages", url) == sorted(made) and len(read) == 1


def test_what_a_store_that_is_away_did_not_take_comes_with_the_next(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ARTIFACTS, s3)
    home, made = tmp_path / "one", []

    def end() -> None:
        with recording(recorder := Recorder(ArtifactStore(home), "train", "tiny"), Progress()):
            pass
        made.append(recorder.id)

    end()
    with monkeypatch.context() as away, caplog.at_level(logging.WARNING):
        away.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        away.setattr(sharing, "_PATIENCE_SECONDS", 0.5)
        fsspec.filesystem("s3").clear_instance_cache()
        end()
        end()
        assert "waits in" in caplog.text and "of-the-worker" not in caplog.text
    fsspec.filesystem("s3").clear_instance_cache()
    assert seen(tmp_path / "pages", s3) == made[:1]
    end()
    assert seen(tmp_path / "pages", s3) == sorted(made) and len(pieces(s3)) == 1


def test_a_copy_of_a_home_writes_nothing_in_its_place(
    ends: Callable[..., str], url: str, tmp_path: Path
) -> None:
    made = [ends("one"), ends("one")]
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    made += [ends("copy"), ends("one"), ends("copy")]
    assert seen(tmp_path / "pages", url) == sorted(made)
    for file in (tmp_path / "one" / "costs").glob("*.jsonl"):  # begun anew
        file.unlink()
    made.append(ends("one"))
    assert seen(tmp_path / "pages", url) == sorted(made)
    shutil.rmtree(next((tmp_path / "one" / "costs").glob("shared-*")))  # what was sent is not known any more
    made.append(ends("one"))
    assert seen(tmp_path / "pages", url) == sorted(made)


def test_another_store_gets_all_of_it(
    ends: Callable[..., str], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [ends("one"), ends("one")]
    monkeypatch.setenv(ARTIFACTS, other := (tmp_path / "other").as_uri())
    made.append(ends("one"))
    assert seen(tmp_path / "pages", other) == sorted(made) != seen(tmp_path / "pages", url)


KILLED = """
import os, signal, sys
from pathlib import Path
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.costs import Recorder, recording, sharing
from jora_tasks.progress import Progress
from jora_tasks.shared_store import SharedStore
when = sys.argv[1]
writing = SharedStore.write
def write(self, data, *place):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    writing(self, data, *place)
    os.kill(os.getpid(), signal.SIGKILL)
SharedStore.write = write
recorder = Recorder(ArtifactStore(), "train", "tiny")
print(recorder.id, flush=True)
with recording(recorder, Progress()):
    pass
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_who_is_killed_while_sharing_loses_and_doubles_nothing(
    ends: Callable[..., str], url: str, tmp_path: Path, when: str
) -> None:
    made, environment = [ends("one")], os.environ | {"JORA_HOME": str(tmp_path / "one")}
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "-c", KILLED, when], env=environment, cwd=ROOT, capture_output=True, text=True
        )
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        made.append(ended.stdout.strip())
    made.append(ends("one"))
    assert seen(tmp_path / "pages", url) == sorted(made) and len(pieces(url)) == 1


def test_processes_of_one_home_that_share_at_once_share_all(url: str, tmp_path: Path) -> None:
    program = """
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.costs import Recorder, recording
from jora_tasks.progress import Progress
for _ in range(20):
    with recording(recorder := Recorder(ArtifactStore(), "train", "tiny"), Progress()):
        print(recorder.id, flush=True)
"""
    environment = os.environ | {"JORA_HOME": str(tmp_path / "one")}
    started = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, cwd=ROOT, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    made = [line.decode() for each in started for line in each.communicate()[0].splitlines()]
    assert len(made) == 60 and seen(tmp_path / "pages", url) == sorted(made)


def test_ends_at_once_wait_neither_for_a_store_that_never_answers_nor_for_each_other(
    silent_s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_PATIENCE_SECONDS", 1.0)
    home, shared = tmp_path / "one", SharedStore(silent_s3)
    with recording(Recorder(ArtifactStore(home), "train", "tiny"), Progress()):
        pass

    def ends() -> bool:
        ending = Thread(target=sharing.share, args=(home, shared), daemon=True)
        ending.start()
        ending.join(15)
        return not ending.is_alive()

    assert ends()
    with sharing._held(sharing._marks(home, shared)) as held:
        assert held and ends()


@pytest.mark.parametrize("full", [600, sharing.FULL])  # two records
def test_what_a_file_lost_when_an_older_copy_was_put_back_stays_shared(
    ends: Callable[..., str], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: int
) -> None:
    monkeypatch.setattr(sharing, "FULL", full)
    made = [ends("one") for _ in range(5)]
    [file] = (tmp_path / "one" / "costs").glob("*.jsonl")
    older = file.read_bytes()
    made += [ends("one") for _ in range(4)]
    for lost in (4, 9):  # twice, and what came between is lost too
        file.write_bytes(older)  # in place
        made += [ends("one", "evaluate") for _ in range(lost + 1)]
        assert seen(tmp_path / "pages", url) == sorted(made)


def test_what_is_no_piece_of_ours_is_left_alone(ends: Callable[..., str], url: str, tmp_path: Path) -> None:
    made, shared = [ends("one")], SharedStore(url)
    month = time.strftime("%Y-%m", time.gmtime())
    shared.write(b"x", "costs", "notes", "mine.txt")
    shared.write(b"x", "costs", month, "mine.txt")
    shared.write(b'{"id": "half', "costs", month, f"{'0' * 16}.jsonl")
    assert costs.shared_months(shared) == [month]
    assert seen(tmp_path / "pages", url) == made
