"""A training that was lost with its machine goes on on another one, from the checkpoint that they share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.progress import Progress
from jora_tasks.shared_store import ARTIFACTS, SharedStore
from jora_tasks.shared_work import forget, keep, take_up
from jora_tasks.spec import load_spec
from jora_tasks.stages.pipeline import run_stage
from tests.tiny import write_project


@pytest.fixture
def shared(tmp_path: Path) -> SharedStore:
    return SharedStore((tmp_path / "share").as_uri())


def work_of(folder: Path, step: int) -> Path:
    (folder / "checkpoints" / str(step)).mkdir(parents=True)
    (folder / "checkpoints" / str(step) / "state").write_text(f"state {step}")
    (folder / "metrics.jsonl").write_text("{}\n" * step)
    return folder


def names(step: int) -> list[str]:
    return ["metrics.jsonl", f"checkpoints/{step}/state"]


def test_only_a_checkpoint_that_is_further_is_taken_up(shared: SharedStore, tmp_path: Path) -> None:
    work = work_of(tmp_path / "work", 2)
    keep(shared, "adapter", "k", work, 2, names(2))
    keep(shared, "adapter", "k", work_of(tmp_path / "work4", 4), 4, names(4))
    assert shared.listed("work", "adapter", "k") == ["4", "state.json"]

    other = work_of(tmp_path / "other", 4)
    assert take_up(shared, "adapter", "k", other, 4) is None
    assert take_up(shared, "adapter", "k", other, 2) == 4
    assert (other / "checkpoints" / "4" / "state").read_text() == "state 4"
    assert (other / "metrics.jsonl").read_text() == "{}\n" * 4
    forget(shared, "adapter", "k")
    assert take_up(shared, "adapter", "k", other, -1) is None
    forget(shared, "adapter", "k")


@pytest.mark.parametrize("harm", ["4/checkpoints/4/state", "state.json"])
def test_a_damaged_checkpoint_is_left_out(
    shared: SharedStore, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep(shared, "adapter", "k", work_of(tmp_path / "work", 4), 4, names(4))
    shared.write(b"{}", "work", "adapter", "k", *harm.split("/"))
    mine = work_of(tmp_path / "mine", 1)
    assert take_up(shared, "adapter", "k", mine, 1) is None
    assert (mine / "checkpoints" / "1" / "state").read_text() == "state 1"
    assert "cannot be used" in caplog.text


@pytest.mark.slow
def test_what_a_lost_machine_had_trained_another_goes_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One machine is killed in the middle; the other's adapter is that of a run that nothing happened to."""
    (tmp_path / "project").mkdir()
    file = write_project(tmp_path / "project")
    settings = {"training.epochs": 60, "training.checkpoint_every": 5}
    spec = load_spec(file, tuple(f"{name}={value}" for name, value in settings.items()))
    undisturbed = ArtifactStore(tmp_path / "alone")
    for stage in ("corpus", "index", "contexts", "prompts", "train"):
        run_stage(stage, spec, undisturbed, Progress())
    expected = undisturbed.latest("tiny", "adapter")

    monkeypatch.setenv(ARTIFACTS, (tmp_path / "share").as_uri())
    lost = ArtifactStore(tmp_path / "lost")
    for stage in ("corpus", "index", "contexts", "prompts"):
        run_stage(stage, spec, lost, Progress())
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    trainer = subprocess.Popen(
        [sys.executable, "-m", "jora_tasks.cli", "train", "--spec", str(file), "--json", *options],
        env={**os.environ, "JORA_HOME": str(lost.home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    state = tmp_path / "share" / "work" / "adapter" / expected.key / "state.json"
    deadline = time.monotonic() + 240
    while not (state.is_file() and json.loads(state.read_text())["step"] >= 10):
        assert time.monotonic() < deadline and trainer.poll() is None
        time.sleep(0.02)
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    reached = json.loads(state.read_text())["step"]

    told: list[int] = []
    other = ArtifactStore(tmp_path / "other")
    run_stage("train", spec, other, Progress(lambda event: told.append(event.done)))
    made = other.latest("tiny", "adapter")
    assert made.key == expected.key
    weights = "adapter_model.safetensors"
    assert made.manifest["files"][weights] == expected.manifest["files"][weights]
    assert min(step for step in told if step) == reached + 1
    assert not state.exists()
