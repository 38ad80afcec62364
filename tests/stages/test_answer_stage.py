"""Answers in parts, ahead of an evaluation that takes them: the evaluation is that of one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.progress import Event, Progress
from jora_tasks.stages.answer import answer_shard
from jora_tasks.stages.evaluate import evaluate_adapter
from tests.stages.evaluating import make_adapter, make_prompts, make_spec, register

SHARDS = 2


def parts_of(store: ArtifactStore) -> list[dict[str, Any]]:
    """Manifests of the parts that are kept."""
    files = (store.home / "artifacts" / "predictions").glob("*/manifest.json")
    return [manifest for file in files if "part" in (manifest := json.loads(file.read_text()))["settings"]]


@pytest.fixture
def line(registry_store: ArtifactStore, base_folder: Path) -> tuple[ArtifactStore, Artifact, Artifact]:
    """A home with prompts, an adapter and a champion."""
    prompts = make_prompts(registry_store)
    register(registry_store, make_adapter(registry_store, base_folder, prompts, seed=2))
    return registry_store, make_adapter(registry_store, base_folder, prompts, seed=1), prompts


def test_an_evaluation_of_parts_is_that_of_one_process_to_the_last_bit(
    line: tuple[ArtifactStore, Artifact, Artifact], base_folder: Path, generated: list[bool], tmp_path: Path
) -> None:
    store, adapter, prompts = line
    apart = ArtifactStore(shutil.copytree(store.home, tmp_path / "apart"))
    alone = evaluate_adapter(make_spec(base_folder), adapter, prompts, store, Progress())
    assert generated == [False, False, True, True]

    spec, events = make_spec(base_folder, shards=SHARDS), list[Event]()
    generated.clear()
    counts = [answer_shard(spec, adapter, prompts, apart, Progress(events.append), n) for n in range(SHARDS)]
    assert sum(each["answers"] for each in counts) == 4 * 10  # arms, questions
    assert min(each["answers"] for each in counts) > 0
    assert {each["answers_reused"] for each in counts} == {0}
    assert generated == [False, False, True, True] * SHARDS
    assert [(each.stage, each.done) for each in events if each.done == each.total] == [
        ("answer", each["answers"]) for each in counts
    ]

    generated.clear()
    joined = evaluate_adapter(spec, adapter, prompts, apart, Progress())
    assert generated == []
    assert (joined.key, joined.digest) == (alone.key, alone.digest)
    again = [answer_shard(spec, adapter, prompts, apart, Progress(), n) for n in range(SHARDS)]
    assert [each["answers_reused"] for each in again] == [each["answers"] for each in counts]


def test_the_evaluation_makes_the_parts_that_are_missing_or_damaged(
    line: tuple[ArtifactStore, Artifact, Artifact], base_folder: Path, generated: list[bool]
) -> None:
    store, adapter, prompts = line
    spec = make_spec(base_folder, shards=SHARDS)
    answer_shard(spec, adapter, prompts, store, Progress(), 1)
    damaged = next(part for part in parts_of(store) if "adapter" not in part["inputs"])
    (store.home / "artifacts" / "predictions" / damaged["key"] / "predictions.parquet").write_bytes(b"")

    generated.clear()
    events: list[Event] = []
    evaluation = evaluate_adapter(spec, adapter, prompts, store, Progress(events.append))
    assert sorted(generated) == [False] * 3 + [True] * 2  # part 0 of four arms, and the base's damaged one
    assert evaluation.counts["questions"] == 10
    assert (events[-1].done, events[-1].total) == (40, 40)
    assert [event.done for event in events] == sorted({event.done or 0 for event in events})


def test_what_an_arm_answered_before_is_not_asked_again(
    line: tuple[ArtifactStore, Artifact, Artifact], base_folder: Path, generated: list[bool]
) -> None:
    store, adapter, prompts = line
    evaluate_adapter(make_spec(base_folder), adapter, prompts, store, Progress())
    generated.clear()
    another = make_adapter(store, base_folder, prompts, seed=3)
    spec = make_spec(base_folder, shards=SHARDS)
    counts = answer_shard(spec, another, prompts, store, Progress(), 0)
    assert generated == [True]
    assert counts["answers"] - counts["answers_reused"] == counts["answers"] // 4


def test_another_cut_is_other_parts(
    line: tuple[ArtifactStore, Artifact, Artifact], base_folder: Path, generated: list[bool]
) -> None:
    """A part that was cut along other batches holds other questions."""
    store, adapter, prompts = line
    answer_shard(make_spec(base_folder, shards=2), adapter, prompts, store, Progress(), 0)
    for changed in ({"shards": 3}, {"shards": 2, "batch_size": 2}):
        generated.clear()
        answer_shard(make_spec(base_folder, **changed), adapter, prompts, store, Progress(), 0)
        assert len(generated) == 4, changed


def test_more_parts_than_batches_leave_some_empty(
    line: tuple[ArtifactStore, Artifact, Artifact], base_folder: Path, generated: list[bool]
) -> None:
    store, adapter, prompts = line
    spec = make_spec(base_folder, shards=20)
    assert answer_shard(spec, adapter, prompts, store, Progress(), 19) == {"answers": 0, "answers_reused": 0}
    assert generated == []


@pytest.mark.parametrize("shard", [-1, 2])
def test_a_part_that_is_not_there_is_refused(
    line: tuple[ArtifactStore, Artifact, Artifact], base_folder: Path, shard: int
) -> None:
    store, adapter, prompts = line
    with pytest.raises(
        InputError, match=rf"shard {shard} is none of evaluation\.shards 2; give one from 0 to 1"
    ):
        answer_shard(make_spec(base_folder, shards=2), adapter, prompts, store, Progress(), shard)
    assert not (store.home / "artifacts" / "predictions").exists()


KILLED = """
import os, signal, sys
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.progress import Progress
from jora_tasks.stages.answer import answer_shard
from pathlib import Path
from tests.stages.evaluating import make_spec

home, base, adapter, prompts = sys.argv[1:]
store = ArtifactStore(home)

def die(event):
    if event.fields.get("arm") == "base_with_contexts":
        os.kill(os.getpid(), signal.SIGKILL)

spec = make_spec(Path(base), shards=2)
answer_shard(spec, store.get("adapter", adapter), store.get("prompts", prompts), store, Progress(die), 0)
"""


@pytest.mark.slow
def test_a_part_whose_process_was_killed_is_made_by_the_evaluation(
    line: tuple[ArtifactStore, Artifact, Artifact], base_folder: Path, generated: list[bool]
) -> None:
    store, adapter, prompts = line
    arguments = [str(store.home), str(base_folder), adapter.key, prompts.key]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert [part["settings"]["prompt"] for part in parts_of(store)] == ["closed_book"]

    spec = make_spec(base_folder, shards=SHARDS)
    answer_shard(spec, adapter, prompts, store, Progress(), 1)
    generated.clear()
    evaluation = evaluate_adapter(spec, adapter, prompts, store, Progress())
    assert sorted(generated) == [False, True, True]
    assert pq.read_table(evaluation.file("predictions.parquet")).num_rows == 40
    assert not list((store.home / "artifacts" / "predictions").glob(".*"))
