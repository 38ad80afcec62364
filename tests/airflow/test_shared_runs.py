"""What stages said and made on one machine, shown by the pages of another."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from jora_tasks.airflow import shared_runs
from jora_tasks.airflow.pages.files import artifact_file
from jora_tasks.airflow.pages.progress import read_progress
from jora_tasks.airflow.runs import progress_file, run_folder
from jora_tasks.airflow.shared_runs import share_events, told_live
from jora_tasks.artifacts import ArtifactStore, Source
from jora_tasks.errors import InputError
from jora_tasks.shared_store import ARTIFACTS, SharedStore
from tests.fleet.topology import wait

DAG, RUN = "adapter_training", "asset_triggered__2026-01-01T00:00:00+00:00_x"


def said(home: Path, *events: dict[str, Any]) -> Path:
    folder = run_folder(home, DAG, RUN)
    folder.mkdir(parents=True, exist_ok=True)
    with progress_file(folder).open("a") as file:
        file.writelines(f"{json.dumps({'fields': {}, **event})}\n" for event in events)
    return folder


def test_the_pages_see_what_every_machine_s_stages_said_last(tmp_path: Path) -> None:
    url = (tmp_path / "share").as_uri()
    steps = [{"stage": "train", "state": "running", "done": n, "time": 5.0 + n / 100} for n in range(99)]
    one = said(
        tmp_path / "one",
        {"stage": "contexts", "state": "built", "fields": {"key": "c"}, "time": 1.0},
        {"stage": "prompts", "state": "reused", "fields": {"key": "p"}, "time": 2.0},
    )
    two = said(tmp_path / "two", *steps, {"stage": "train", "state": "failed", "time": 7.0})
    share_events(url, one, "contexts", "contexts")
    share_events(url, one, "prompts", "prompts")
    share_events(url, two, "train", "train")
    third = progress_file(run_folder(tmp_path / "three", DAG, RUN))
    found = read_progress(third, SharedStore(url))
    assert found.made == {"contexts": {"c": "built"}, "prompts": {"p": "reused"}}
    assert found.last["train"]["state"] == "failed"
    said(tmp_path / "two", {"stage": "train", "state": "built", "fields": {"key": "a"}, "time": 9.0})
    share_events(url, two, "train", "train")
    assert read_progress(third, SharedStore(url)).made["adapter"] == {"a": "built"}
    assert read_progress(third).made == {}
    assert len(list((tmp_path / "share" / "runs").rglob("*.jsonl"))) == 3


def test_what_a_running_stage_says_is_seen_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_runs, "_LIVE_SECONDS", 0.02)
    share, third = tmp_path / "share", progress_file(run_folder(tmp_path / "three", DAG, RUN))
    folder, writes = said(tmp_path / "one"), []
    writing = SharedStore.write
    monkeypatch.setattr(
        SharedStore, "write", lambda self, *given: writes.append(given) or writing(self, *given)
    )

    def done() -> int | None:
        told = read_progress(third, SharedStore(share.as_uri())).last.get("train")
        return told["done"] if told else None

    with told_live(share.as_uri(), folder, "train", "train"):
        for step in (1, 2):
            said(tmp_path / "one", {"stage": "train", "state": "running", "done": step, "time": float(step)})
            wait(lambda step=step: done() == step, 10, "what it said")
        time.sleep(0.3)
        assert len(writes) <= 3  # what is said again is not told again; a line may have been half there
    said(tmp_path / "one", {"stage": "train", "state": "running", "done": 3, "time": 3.0})
    time.sleep(0.1)
    assert done() == 2  # it has ended


def test_a_store_that_is_away_keeps_no_stage_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared_runs, "_LIVE_SECONDS", 0.01)
    monkeypatch.setattr(shared_runs, "_LIVE_PATIENCE_SECONDS", 0.1)
    for name, value in {
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
        "ENDPOINT_URL": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    folder = said(tmp_path / "one", {"stage": "train", "state": "running", "done": 1, "time": 1.0})
    started = time.monotonic()
    with caplog.at_level(logging.WARNING), told_live("s3://fleet/away", folder, "train", "train"):
        time.sleep(0.5)
    assert time.monotonic() - started < 20
    assert not [each for each in caplog.records if each.name != "asyncio"]  # whose are of any test's calls


def test_a_store_that_never_answers_keeps_no_stage_from_ending(
    silent_s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared_runs, "_LIVE_SECONDS", 0.01)
    monkeypatch.setattr(shared_runs, "_PATIENCE_SECONDS", 1.0)
    folder = said(tmp_path / "one", {"stage": "train", "state": "running", "done": 1, "time": 1.0})
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        with told_live(silent_s3, folder, "train", "train"):
            time.sleep(0.5)
        share_events(silent_s3, folder, "train", "train")
    assert time.monotonic() - started < 15
    assert "What stage train said is not shared: JORA_ARTIFACTS s3://fleet/silent did not" in caplog.text


def test_a_report_is_shown_where_it_was_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ARTIFACTS, (tmp_path / "share").as_uri())
    text = "<p>passes</p>"

    def write(folder: Path) -> dict[str, Any]:
        (folder / "verdict.html").write_text(text)
        (folder / "large.bin").write_bytes(bytes(1000))
        return {}

    inputs = {"evaluation": Source("documents", "d", "sha256:d")}
    made = ArtifactStore(tmp_path / "one").build(
        "verdict", version=1, settings={}, inputs=inputs, write=write
    )
    pages = ArtifactStore(tmp_path / "two")
    for _ in range(2):
        file = artifact_file(pages, "verdict", made.key, "verdict.html")
        assert file and file.read_text() == text
    assert pages.shared and pages.shared.fetched == len(text)  # once, and that file alone
    assert artifact_file(pages, "verdict", made.key, "../../verdict.html") is None
    assert artifact_file(pages, "verdict", "0" * 16, "verdict.html") is None
    [kept] = (tmp_path / "share").rglob("verdict.html")
    kept.write_text("<p>fails</p>")
    with pytest.raises(InputError, match=r"verdict.html was altered"):
        artifact_file(ArtifactStore(tmp_path / "three"), "verdict", made.key, "verdict.html")


def test_a_store_that_does_not_take_it_fails_no_task(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = said(tmp_path / "one", {"stage": "train", "state": "built", "time": 1.0})
    with caplog.at_level(logging.WARNING):
        share_events("nothing-of-the-kind://bucket/x", folder, "train", "train")
    assert "What stage train said is not shared: JORA_ARTIFACTS" in caplog.text
