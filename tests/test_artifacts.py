"""Artifacts: whole or absent, found again by what made them, damage noticed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jora_tasks.artifacts import STAGE_OF, Artifact, ArtifactStore, Source
from jora_tasks.errors import InputError
from jora_tasks.stages.pipeline import STAGES
from jora_tasks.writing import write_text


def build(store: ArtifactStore, text: str, setting: int = 1, made_from: str = "sha256:0") -> Artifact:
    def write(folder: Path) -> dict[str, int]:
        (folder / "sub").mkdir()
        (folder / "sub" / "text.txt").write_text(text)
        return {"characters": len(text)}

    return store.build(
        "corpus",
        version=1,
        settings={"setting": setting},
        inputs={"documents": Source("documents", "docs", made_from)},
        write=write,
    )


def test_the_same_inputs_find_the_same_artifact(home: Path) -> None:
    store = ArtifactStore()
    first, second = build(store, "one"), build(store, "not written")
    assert not first.reused
    assert second.reused
    assert second.path == first.path
    assert second.file("sub/text.txt").read_text() == "one"
    assert second.counts == {"characters": 3}


def test_other_settings_or_inputs_make_another_artifact_and_the_first_comes_back(home: Path) -> None:
    store = ArtifactStore()
    one = build(store, "a")
    assert build(store, "b", setting=2).key != one.key
    assert build(store, "c", made_from="sha256:1").key != one.key
    again = build(store, "d")
    assert again.reused
    assert again.digest == one.digest


@pytest.mark.parametrize(
    "damage", ["altered", "missing", "{", "[]", "null", '{"files": {}}', '{"kind": "corpus"}', "not a folder"]
)
def test_a_damaged_artifact_is_made_again(home: Path, damage: str) -> None:
    store = ArtifactStore()
    path = build(store, "right").path
    if damage == "altered":
        (path / "sub/text.txt").write_text("wrong")
    elif damage == "missing":
        (path / "sub/text.txt").unlink()
    elif damage == "not a folder":
        shutil.rmtree(path)
        path.write_text("")
    else:
        (path / "manifest.json").write_text(damage)
    with pytest.raises(InputError, match="altered"):
        store.get("corpus", path.name)
    assert not build(store, "right").reused
    assert store.get("corpus", path.name).file("sub/text.txt").read_text() == "right"


def test_a_failing_stage_leaves_nothing(home: Path) -> None:
    store = ArtifactStore()

    def write(folder: Path) -> dict[str, int]:
        (folder / "half").write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        store.build("index", version=1, settings={}, inputs={}, write=write)
    assert [p for p in (home / "artifacts/index").iterdir() if p.is_dir()] == []


def test_a_killed_writer_leaves_no_artifact_and_no_litter(home: Path) -> None:
    program = (
        "import time; from pathlib import Path; from jora_tasks.artifacts import ArtifactStore\n"
        "def write(folder):\n"
        "    (folder / 'half').write_text('half'); print('writing', flush=True); time.sleep(60)\n"
        "ArtifactStore().build('index', version=1, settings={}, inputs={}, write=write)"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=os.environ)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    store = ArtifactStore()
    made = store.build("index", version=1, settings={}, inputs={}, write=lambda folder: {})
    assert not made.reused
    assert [p.name for p in (home / "artifacts/index").iterdir() if p.is_dir()] == [made.key]


def test_two_writers_of_one_key_make_it_once(home: Path) -> None:
    writes, results = [], []

    def write(folder: Path) -> dict[str, int]:
        writes.append(1)
        time.sleep(0.2)
        return {}

    def work() -> None:
        results.append(ArtifactStore().build("index", version=1, settings={}, inputs={}, write=write))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(writes) == 1
    assert sorted(result.reused for result in results) == [False, True, True, True]


def test_latest_follows_the_run_and_not_the_clock(home: Path) -> None:
    store = ArtifactStore()
    first, second = build(store, "a"), build(store, "b", setting=2)
    for artifact in (first, second, build(store, "a")):
        store.set_latest("handbook", artifact)
    assert store.latest("handbook", "corpus").key == first.key
    with pytest.raises(InputError, match="run `jora corpus` first; there is one for handbook"):
        store.latest("other", "corpus")


def test_an_artifact_in_the_place_of_another_is_no_artifact(home: Path) -> None:
    store = ArtifactStore()
    one, two = build(store, "a"), build(store, "b", setting=2)
    shutil.rmtree(two.path)
    shutil.copytree(one.path, two.path)
    with pytest.raises(InputError, match="does not match its manifest"):
        store.get("corpus", two.key)


def test_a_damaged_pointer_is_mended_by_the_next_run(home: Path) -> None:
    store = ArtifactStore()
    store.set_latest("handbook", build(store, "a"))
    (home / "latest/handbook/corpus").write_bytes(b"\xff/etc")
    with pytest.raises(InputError, match="does not exist"):
        store.latest("handbook", "corpus")
    store.set_latest("handbook", build(store, "a"))
    assert store.latest("handbook", "corpus").reused


def test_every_kind_names_the_stage_that_makes_it() -> None:
    assert {stage.kind: stage.name for stage in STAGES.values() if stage.kind} == STAGE_OF


def test_a_file_is_written_whole_or_as_before(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_text(file, "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "after \ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "before"


def test_a_home_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="is not a folder that can be written"):
            ArtifactStore(home)


def test_an_unknown_key_is_named(home: Path) -> None:
    store = ArtifactStore()
    made = build(store, "a")
    assert store.get("corpus", made.key[:6]).key == made.key
    with pytest.raises(InputError, match="'feed' does not exist"):
        store.get("corpus", "feed")
    for key in ("../corpus", "a*", "*", "/etc", ""):
        with pytest.raises(InputError, match="does not exist"):
            store.get("corpus", key)


def test_the_manifest_names_the_airflow_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JORA_AIRFLOW_RUN", "document_index/manual__1")
    manifest = json.loads((build(ArtifactStore(), "a").path / "manifest.json").read_text())
    assert manifest["provenance"]["airflow_run"] == "document_index/manual__1"
