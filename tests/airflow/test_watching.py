from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.module_loading import import_string

from jora_tasks.airflow.watching import DocumentsTrigger, told_file, watched_documents
from retrieval.snapshot import snapshot

ROOT = Path(__file__).parents[2]


async def events(path: str, changes: list[Callable[[], object]]) -> list[str]:
    """The snapshots that one life of the trigger tells of while these changes are made one by one."""
    found: list[str] = []

    async def watch() -> None:
        async for event in DocumentsTrigger(path, 0.02).run():
            found.append(event.payload["snapshot"])

    watching = asyncio.create_task(watch())
    try:
        for change in [lambda: None, *changes]:
            change()
            await asyncio.sleep(0.4)
    finally:
        watching.cancel()
    return found


def watch(path: str, *changes: Callable[[], object]) -> list[str]:
    return asyncio.run(events(path, list(changes)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "documents"
    made.mkdir()
    (made / "a.md").write_text("a")
    return made


def test_the_first_snapshot_starts_nothing_and_each_further_one_fires_once(home, folder):
    def edit() -> None:
        (folder / "a.md").write_text("changed")

    fired = watch(
        str(folder),
        edit,
        lambda: None,
        lambda: (folder / "b.md").write_text("b"),
        lambda: (folder / "notes.bin").write_text("no document"),
        lambda: (folder / "a.md").unlink(),
    )
    assert len(fired) == len(set(fired)) == 3
    assert fired[-1] == snapshot(str(folder))


def test_a_restart_tells_of_what_changed_meanwhile_and_of_nothing_twice(home, folder):
    assert watch(str(folder)) == []
    (folder / "b.md").write_text("b")
    assert watch(str(folder)) == [snapshot(str(folder))]
    assert watch(str(folder)) == []
    assert json.loads(told_file(home, str(folder)).read_text())["snapshot"] == snapshot(str(folder))


def test_a_folder_that_is_away_for_a_while_is_no_change(home, folder):
    away = folder.with_name("away")
    assert watch(str(folder), lambda: folder.rename(away), lambda: away.rename(folder)) == []


def test_files_that_are_still_being_written_are_waited_for(home, folder):
    fired = watch(str(folder), *[lambda: None])
    assert fired == []

    async def grow() -> list[str]:
        found: list[str] = []

        async def watching() -> None:
            async for event in DocumentsTrigger(str(folder), 0.2).run():
                found.append(event.payload["snapshot"])

        task = asyncio.create_task(watching())
        for number in range(12):
            (folder / f"copy-{number}.md").write_text("x")
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        task.cancel()
        return found

    assert asyncio.run(grow()) == [snapshot(str(folder))]


def test_a_prefix_of_an_object_store_is_watched(home):
    store = fsspec.filesystem("memory")
    store.pipe("/watched/a.md", b"a")
    try:
        fired = watch("memory://watched", lambda: store.pipe("/watched/a.md", b"other"), lambda: None)
        assert fired == [snapshot("memory://watched")]
    finally:
        store.rm("/watched", recursive=True)


def test_the_trigger_is_made_again_from_what_it_says(home):
    path, arguments = DocumentsTrigger("s3://bucket/x", 7).serialize()
    again: Any = import_string(path)(**arguments)
    assert (again.path, again.seconds) == ("s3://bucket/x", 7)


def test_documents_are_watched_where_a_spec_names_them(airflow_db, tmp_path: Path, folder, monkeypatch):
    assert watched_documents() is None
    (tmp_path / "run.yaml").write_text("documents: {path: documents}\n")
    monkeypatch.setenv("JORA_SPEC", str(tmp_path / "run.yaml"))
    asset = watched_documents()
    assert asset is not None and asset.uri == folder.as_uri()
    assert asset.watchers[0].trigger.path == str(folder)
    bag = DagBag(str(ROOT / "dags"))
    assert bag.import_errors == {}
    schedule = bag.dags["document_index"].timetable
    assert {each.uri for each in schedule.asset_condition.objects} == {folder.as_uri()}
    assert schedule.timetable.expression == "0 3 * * *"
    monkeypatch.setenv("JORA_WATCH_SECONDS", "0")
    assert watched_documents() is None


def test_a_snapshot_is_of_names_sizes_and_times(folder):
    before = snapshot(str(folder))
    assert snapshot(str(folder)) == before
    os.utime(folder / "a.md", (1, 1))
    assert snapshot(str(folder)) != before
