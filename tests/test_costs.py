"""What stages take is recorded: once each, whoever ends them, and nowhere that content is known by."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from jora_tasks import costs
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.costs import Cost, Recorder, recording
from jora_tasks.errors import InputError
from jora_tasks.lineage import events_file
from jora_tasks.progress import BUILT, Progress
from jora_tasks.shared_store import ARTIFACTS, SharedStore
from jora_tasks.stages.pipeline import STAGES
from tests.commands import ROOT, Commands
from tests.registry.registering import make_adapter

DEVICES = ("train", "evaluate")


def records(home: Path) -> list[Cost]:
    lines = [line for month in costs.months(home) for line in costs.month_file(home, month).open("rb")]
    return [cost for line in lines if (cost := costs.parse(line))]


def test_a_run_leaves_a_record_of_each_stage(finished_home: Path) -> None:
    found = records(finished_home)
    assert [cost.stage for cost in found] == list(STAGES) and len({cost.run for cost in found}) == 1
    for cost in found:
        assert (cost.line, cost.state, cost.sent, cost.fetched) == ("tiny", "built", 0, 0)
        assert (0 < cost.device_seconds <= cost.seconds) == (cost.stage in DEVICES)
        assert cost.misses == (0 if cost.stage == "register" else 5 if cost.stage == "evaluate" else 1)
    by_stage = {cost.stage: cost for cost in found}
    store = ArtifactStore(finished_home)
    sizes = {}
    for kind in ("prompts", "adapter"):
        files = [file for file in store.latest("tiny", kind).path.rglob("*") if file.is_file()]
        sizes[kind] = sum(file.stat().st_size for file in files)
    assert by_stage["train"].read == sizes["prompts"] and by_stage["train"].written == sizes["adapter"]
    assert not (finished_home / "costs" / "running").exists() or not list(
        (finished_home / "costs" / "running").iterdir()
    )


def test_openlineage_is_told_what_a_stage_took(finished_home: Path) -> None:
    events = [json.loads(line) for line in events_file(finished_home).read_text().splitlines()]
    told = {
        event["job"]["name"]: event["run"]["facets"]["jora_cost"]
        for event in events
        if event["eventType"] == "COMPLETE" and "jora_cost" in event["run"]["facets"]
    }
    for cost in records(finished_home):
        facet = told[f"jora.{cost.stage}"]
        assert {name: facet[name] for name in cost.figures()} == cost.figures()
        assert facet["_producer"] and facet["_schemaURL"]


@pytest.mark.slow
def test_what_is_up_to_date_is_a_hit_and_takes_no_device(
    commands: Commands, finished_home: Path, tiny_project: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(finished_home, home)
    told = commands.run("run", "--spec", tiny_project, "--json", JORA_HOME=home).result["stages"]
    again = records(home)[len(STAGES) :]
    assert [cost.state for cost in again] == ["reused"] * len(STAGES)
    assert all(cost.device_seconds == cost.misses == cost.written == 0 for cost in again)
    assert [cost.hits > 0 for cost in again] == [stage.kind is not None for stage in STAGES.values()]
    assert [stage["cost"] for stage in told] == [cost.figures() for cost in again]
    assert len({cost.run for cost in records(home)}) == 2


def test_input_that_is_refused_leaves_nothing_and_a_failure_a_record(home: Path) -> None:
    with pytest.raises(InputError), recording(Recorder(ArtifactStore(), "train", "a"), Progress()):
        raise InputError("no")
    assert not home.exists()
    with pytest.raises(OSError), recording(Recorder(ArtifactStore(), "train", "a"), Progress()):
        raise OSError
    assert [(cost.stage, cost.state) for cost in records(home)] == [("train", "failed")]


KILLED = """
import sys, time
from jora_tasks import costs
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.costs import recorder
from jora_tasks.progress import Progress
recorder._BEAT_SECONDS = 0.05
store = ArtifactStore()
with costs.recording(costs.Recorder(store, "train", "a"), Progress()) as progress, store.meter.on_devices():
    for step in range(1000):
        time.sleep(0.02)
        progress("train", done=step)
        if step == 20:
            print("running", flush=True)
"""


def test_what_a_killed_stage_took_is_told_by_the_next(home: Path) -> None:
    environment = os.environ | {"JORA_AIRFLOW_RUN": "adapter_training/run"}
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED], stdout=subprocess.PIPE, cwd=ROOT, env=environment
    )
    assert child.stdout is not None and child.stdout.readline()
    costs.settle(home)
    assert records(home) == []  # it is running
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with recording(recorder := Recorder(ArtifactStore(), "train", "a"), Progress()):
        recorder.state = BUILT
    killed, built = records(home)
    assert (killed.state, killed.run, built.state) == ("killed", "adapter_training/run", "built")
    assert 0.3 < killed.device_seconds <= killed.seconds + 0.01
    costs.settle(home)
    assert len(records(home)) == 2


def test_half_a_record_costs_no_other(home: Path) -> None:
    for _ in range(2):
        with recording(Recorder(ArtifactStore(), "train", "a"), Progress()):
            pass
        with costs.month_file(home, costs.months(home)[0]).open("ab") as file:
            file.write(b'\n{"id": "ha')
    assert len(records(home)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": "abc"},
        {"seconds": -1},
        {"device_seconds": float("nan")},
        {"read": 0.5},
        {"ended": "../../../outside"},
        {"ended": ""},
        {"line": None},
    ],
)
def test_what_is_no_record_counts_nowhere(home: Path, change: dict[str, object]) -> None:
    good = Cost("1", "corpus", "tiny", "by hand 1", BUILT, "2026-11-27T12:00:00Z", 1.5, 0, 1, 2, 3, 4, 5, 6)
    assert costs.parse(json.dumps(asdict(good)).encode()) == good
    bad = json.dumps(asdict(good) | change).encode()
    running = home / "costs" / "running"
    running.mkdir(parents=True)
    for number, left in enumerate((bad, b"{}", b"[]", b"[" * 200_000, b"", b"\xff")):
        assert costs.parse(left) is None
        (running / f"{number}.json").write_bytes(left)
    costs.settle(home)
    assert [file.name for file in (home / "costs").rglob("*")] == ["running"]


def test_bytes_to_and_from_machines_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ARTIFACTS, (tmp_path / "share").as_uri())
    told = []
    for name in ("one", "two"):
        recorder = Recorder(store := ArtifactStore(tmp_path / name), "train", "a")
        with recording(recorder, Progress()):
            made = make_adapter(store, 1)
            recorder.state = BUILT
        told.append(recorder.cost())
    size = sum((made.path / name).stat().st_size for name in made.manifest["files"])
    assert [(cost.sent, cost.fetched, cost.hits, cost.misses) for cost in told] == [
        (size, 0, 0, 1),
        (0, size, 1, 0),
    ]


def test_a_less_patient_store_counts_with_the_other(tmp_path: Path) -> None:
    store = SharedStore((tmp_path / "share").as_uri())
    (tmp_path / "file").write_text("12345")
    store.within(1.0).send(["file"], tmp_path, "place")
    assert store.sent == 5


def test_of_a_run_all_is_found_by_its_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ('dag/"a', "dag/b"):
        monkeypatch.setenv("JORA_AIRFLOW_RUN", run)
        with recording(Recorder(ArtifactStore(), "train", run), Progress()):
            time.sleep(0.01)
    file = costs.month_file(home, costs.months(home)[0])
    assert [cost.line for cost in costs.of_run([file, file], 'dag/"a')] == ['dag/"a']
