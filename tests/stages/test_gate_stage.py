"""The gate over a real evaluation, with slices and canary questions, on tiny random models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.characters import control_in
from jora_tasks.errors import InputError
from jora_tasks.evaluation.answers import contains_answer, normalise
from jora_tasks.progress import Progress
from jora_tasks.spec import RunSpec, load_spec, parse_spec
from jora_tasks.stages.answer import answer_shard
from jora_tasks.stages.evaluate import evaluate_adapter
from jora_tasks.stages.gate import judge_adapter
from jora_tasks.stages.pipeline import run_stage
from tests.tiny import options, write_base

CANARIES = [
    {"id": f"canary-{row['id']}", "question": row["question"], "answers": row["answers"]}
    for row in options()[:4]
]
GATE = {"must_not_fall": {"f1": 0.5, "answer_loss": 0.5}, "slices": ["color"]}


@pytest.fixture(scope="module")
def trained(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ArtifactStore]:
    """A folder with questions and canaries, and a home with the stages up to training."""
    folder = tmp_path_factory.mktemp("gate")
    rows = [row | {"color": row["id"].partition("_")[0]} for row in options()]
    for name, each in (("questions.jsonl", rows), ("canary.jsonl", CANARIES)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in each))
    settings = yaml.safe_load(tiny_project.read_text())
    settings["documents"]["path"] = str(tiny_project.parent / "documents")
    settings["questions"]["path"] = "questions.jsonl"
    # One that says more than control characters, which no known answer may have.
    settings["model"]["base"] = str(write_base(folder / "base", seed=5))
    settings["training"]["learning_rate"] = 0.02
    settings["evaluation"]["cluster_by"] = "group"
    (folder / "spec.yaml").write_text(json.dumps(settings))
    store = ArtifactStore(folder / "home")
    for stage in ("corpus", "index", "contexts", "prompts", "train"):
        run_stage(stage, load_spec(folder / "spec.yaml"), store, Progress())
    return folder, store


def with_gate(folder: Path, **gate: Any) -> RunSpec:
    return load_spec(folder / "spec.yaml", (f"gate={json.dumps(gate)}",))


def evaluated(spec: RunSpec, store: ArtifactStore) -> Artifact:
    adapter, prompts = (store.latest("tiny", kind) for kind in ("adapter", "prompts"))
    return evaluate_adapter(spec, adapter, prompts, store, Progress())


@pytest.mark.slow
def test_slices_and_canaries_are_answered_kept_and_checked(trained: tuple[Path, ArtifactStore]) -> None:
    folder, store = trained
    spec = with_gate(folder, **GATE, canary_path="canary.jsonl")
    evaluation = evaluated(spec, store)
    report = json.loads(evaluation.file("report.json").read_text())

    assert report["arms"]["adapter_with_gold_context"]["n"] == 6
    assert {value: part["n"] for value, part in report["slices"]["color"].items()} == {"long": 2, "zero": 4}
    rows = pq.read_table(evaluation.file("canary.parquet")).to_pylist()
    right = {
        arm: {row["example_id"] for row in rows if row["arm"] == arm and row["contains_answer"]}
        for arm in ("adapter_with_contexts", "base_with_contexts")
    }
    assert len(rows) == 2 * len(CANARIES)
    assert report["canary"]["against"] == "base_with_contexts"
    lost = right["base_with_contexts"] - right["adapter_with_contexts"]
    assert set(report["canary"]["regressions"]) == lost

    verdict = judge_adapter(spec, evaluation, store, Progress())
    judged = json.loads(verdict.file("verdict.json").read_text())
    names = [check["name"] for check in judged["checks"]]
    assert {"f1_no_worse_than_base where color=zero", "answer_loss_no_worse_than_base"} <= set(names)
    canary = next(check for check in judged["checks"] if check["name"] == "canary_regressions")
    assert canary["passed"] is (not lost)
    assert judged["evaluation"]["digest"] == evaluation.digest
    assert (judged["passed"], judged["alias"]) == (False, "candidate")
    assert "color=zero" in verdict.file("verdict.html").read_text()

    again = judge_adapter(spec, evaluated(spec, store), store, Progress())
    assert (again.key, again.reused) == (verdict.key, True)
    other = judge_adapter(with_gate(folder, **GATE, min_questions=3), evaluation, store, Progress())
    assert other.key != verdict.key


@pytest.mark.slow
def test_canaries_answered_in_parts_are_those_of_one_process(
    trained: tuple[Path, ArtifactStore], tmp_path: Path
) -> None:
    folder, store = trained
    left = shutil.ignore_patterns("predictions", "evaluation")
    made = []
    for shards in (1, 2):
        home = ArtifactStore(shutil.copytree(store.home, tmp_path / str(shards), ignore=left))
        spec = with_gate(folder, **GATE, canary_path="canary.jsonl")
        asked = spec.evaluation.model_copy(update={"shards": shards, "batch_size": 2})
        spec = spec.model_copy(update={"evaluation": asked})
        adapter, prompts = (home.latest("tiny", kind) for kind in ("adapter", "prompts"))
        counts = [answer_shard(spec, adapter, prompts, home, Progress(), n) for n in range(shards)]
        assert [each["answers"] for each in counts] in (
            [32],
            [20, 12],
        )  # four arms of 6, two canary arms of 4
        made.append(evaluated(spec, home))
    alone, joined = made
    assert (joined.key, joined.digest) == (alone.key, alone.digest)
    assert "canary.parquet" in joined.manifest["files"]


@pytest.mark.slow
def test_an_answer_that_the_base_had_and_the_adapter_lost_blocks(trained: tuple[Path, ArtifactStore]) -> None:
    """The canaries' known answers are words of the base; the adapter, trained hard, says other things."""
    folder, store = trained
    spec = with_gate(folder, canary_path="canary.jsonl")
    rows = pq.read_table(evaluated(spec, store).file("canary.parquet")).to_pylist()
    said = {(row["arm"], row["example_id"]): row["prediction"] for row in rows}
    changed = []
    for row in CANARIES:
        ours, base = (said[arm, row["id"]] for arm in ("adapter_with_contexts", "base_with_contexts"))
        words = [each for each in base.split() if normalise(each) and not control_in(each)]
        if lost := [each for each in words if not contains_answer(ours, each)]:
            changed.append(row | {"answers": lost[:1]})
    assert changed
    (folder / "lost.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    spec_of_lost = with_gate(folder, canary_path="lost.jsonl")
    with pytest.raises(
        InputError, match=r"without the canary questions lost\.jsonl as they are.*`jora evaluate`"
    ):
        judge_adapter(spec_of_lost, evaluated(spec, store), store, Progress())
    evaluation = evaluated(spec_of_lost, store)
    report = json.loads(evaluation.file("report.json").read_text())
    assert set(report["canary"]["regressions"]) <= {row["id"] for row in changed}
    assert report["canary"]["regressions"]
    for most, passed in ((0, False), (len(changed), True)):
        gate = with_gate(folder, canary_path="lost.jsonl", max_regressions=most)
        judged = json.loads(
            judge_adapter(gate, evaluation, store, Progress()).file("verdict.json").read_text()
        )
        check = next(check for check in judged["checks"] if check["name"] == "canary_regressions")
        assert check["passed"] is passed
        assert check["actual"].startswith(str(len(report["canary"]["regressions"])))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"gate": {"slices": ["kind"]}}, "name a measure there"),
        ({"gate": {"max_regressions": 1}}, "name their file in canary_path"),
        ({"gate": {"min_questions": 2000}}, r"more than evaluation\.max_questions 1000"),
        ({"gate": {"must_rise": ["citation_recall"]}}, r"set prompts\.cite or drop it"),
        ({"gate": {"must_not_fall": {"citation_recall": 0.1}}}, r"set prompts\.cite or drop it"),
        ({"gate": {"must_not_fall": {"f2": 0.1}}}, r"gate\.must_not_fall"),
        ({"gate": {"must_rise": []}}, "name a measure in must_rise or must_not_fall"),
        ({"gate": {"rise_against": []}}, r"gate\.rise_against"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_the_spec(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_spec(sections)
