from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jora_tasks.airflow.operators import run_variants
from jora_tasks.airflow.pages.run_lineage import run_lineage
from jora_tasks.airflow.params import settings
from jora_tasks.airflow.sweep import SWEEP, best_of, checked_variants, measure_of, sweep_param
from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.progress import Progress
from jora_tasks.registry import Registry
from jora_tasks.spec import GateConfig, RunSpec, load_spec
from jora_tasks.stages.pipeline import run_stage

KNOWN = [setting.name for setting in settings()]


def context(*variants: Any, **conf: Any) -> Any:
    run = SimpleNamespace(dag_id="adapter_sweep", run_id="manual__1", conf={SWEEP: variants, **conf})
    return {"dag_run": run, "params": {SWEEP: list(variants)}, "triggering_asset_events": {}}


def test_the_form_s_variants_are_valid():
    offered = sweep_param().resolve()
    found = run_variants(context(*offered))
    assert [{name: each[name] for name in variant} for variant, each in zip(offered, found, strict=True)] == (
        offered
    )


def test_the_best_of_several_has_to_show_more():
    asked = RunSpec().evaluation
    assert run_variants(context({"lora.r": 8})) == [{"lora.r": 8}]
    for each in run_variants(context(*({"lora.r": r} for r in (2, 4, 8, 16)))):
        assert each["evaluation.confidence"] == pytest.approx(1 - (1 - asked.confidence) / 4)
        assert each["evaluation.bootstrap_samples"] == 4 * asked.bootstrap_samples


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "a list of 1 to 32"),
        ({"lora.r": 8}, "a list of 1 to 32"),
        ([8], "variant 0 is 8"),
        ([{"lora.rank": 8}], "variant 0: lora.rank is no setting of"),
        ([{"lora.r": 8}, {"documents.path": "/etc"}], "variant 1: documents.path is no setting of"),
        ([{"lora.r": 8}, {"lora.r": 8}], "variant 1 is the same as variant 0"),
    ],
)
def test_what_is_no_list_of_variants_is_refused(given, said):
    with pytest.raises(InputError, match=said):
        checked_variants(given, KNOWN)


def test_a_variant_that_cannot_be_is_named_before_anything_runs():
    with pytest.raises(InputError, match=r"variant 1: .*lora\.r"):
        run_variants(context({"lora.r": 8}, {"lora.r": -1}))
    with pytest.raises(InputError, match=r"training\.epoch is not a setting"):
        run_variants(context({"lora.r": 8}, **{"training.epoch": 1}))


def tried(store: ArtifactStore, name: str, passed: bool, exact: float, f1: float) -> dict[str, Any]:
    def make(kind: str, file: str, content: Any) -> dict[str, str]:
        def write(folder: Any) -> dict[str, Any]:
            (folder / file).write_text(json.dumps(content))
            return {}

        artifact = store.build(kind, version=1, settings={"of": name}, inputs={}, write=write)
        return {"kind": kind, "key": artifact.key}

    arms = {"adapter_with_contexts": {"exact_match": exact, "f1": f1}}
    return {
        "overrides": {"of": name},
        "verdict": make("verdict", "verdict.json", {"passed": passed}),
        "evaluation": make("evaluation", "report.json", {"arms": arms}),
    }


def test_the_best_by_the_gate_s_measure_is_chosen_from_those_that_passed(home):
    store = ArtifactStore(home)
    given = [
        tried(store, "high but refused", False, 0.9, 0.9),
        tried(store, "by f1", True, 0.4, 0.8),
        tried(store, "by exact match", True, 0.6, 0.7),
    ]
    assert best_of(given, store, RunSpec())["overrides"] == {"of": "by exact match"}
    by_f1 = RunSpec(gate=GateConfig(must_rise=("f1",)))
    assert best_of(given, store, by_f1)["overrides"] == {"of": "by f1"}
    assert best_of(given[:1], store, RunSpec())["overrides"] == {"of": "high but refused"}
    with pytest.raises(InputError, match="no variant came to a verdict"):
        best_of([], store, RunSpec())
    assert measure_of(GateConfig(must_rise=(), must_not_fall={"f1": 0.1})) == "f1"


@pytest.mark.slow
def test_of_real_variants_the_best_becomes_champion_and_one_that_fails_keeps_none_from_it(
    run_dag: Any, tiny_project: Path, home: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("JORA_SPEC", str(tiny_project))
    store, told = ArtifactStore(home), Path(os.environ["AIRFLOW_HOME"]) / "events.jsonl"
    for stage in ("corpus", "index"):
        run_stage(stage, load_spec(tiny_project), store, Progress())
    before = len(told.read_text().splitlines()) if told.exists() else 0
    run = run_dag(
        "adapter_sweep",
        {
            "sweep": [{"lora.r": 2}, {"lora.r": 4}, {"lora.r": 8, "training.max_length": 16}],
            "training.epochs": 4,
            "gate.must_rise": [],
            "gate.must_not_fall": {"answer_loss": 1000.0},
            "evaluation.cluster_by": "group",
            "evaluation.confidence": 0.9,  # what three variants make of it, six questions can still show
        },
    )
    assert run.state == "success"
    states = {(each.task_id, each.map_index): each.state for each in run.get_task_instances()}
    assert [states[f"variant.{stage}", 2] for stage in ("prompts", "train", "tried")] == [
        "success",
        "failed",
        "upstream_failed",
    ]

    tried = [trail(store, adapter) for adapter in made(store, "adapter")]
    assert {each["adapter"].manifest["settings"]["lora"]["r"] for each in tried} == {2, 4}
    losses = [answer_loss(each["evaluation"]) for each in tried]
    print("answer losses", losses)
    best, other = tried if losses[0] < losses[1] else tried[::-1]
    champion = Registry(home).get_champion("tiny")
    assert champion and (champion.version, champion.digest) == (1, best["adapter"].digest)
    assert {kind: store.latest("tiny", kind).key for kind in best} == keys(best)

    shown = run_lineage(store, "adapter_sweep", run.run_id, active=False)
    assert {kind: shown.nodes[kind].label for kind in best} == keys(best)
    assert shown.nodes["registered"].label == "tiny version 1"
    assert {node.kind: node.label for node in shown.more if node.kind in other} == keys(other)

    events = [json.loads(line) for line in told.read_text().splitlines()[before:]]
    complete = [event for event in events if event["eventType"] == "COMPLETE"]
    by_job = {event["job"]["name"].partition(".")[2]: event for event in complete}
    assert versions(by_job["register"], "outputs") == {"registered/tiny": "1"}
    assert versions(by_job["register"], "inputs")["adapter"] == best["adapter"].digest
    trained = [event for event in complete if event["job"]["name"] == "adapter_sweep.variant.train"]
    assert {versions(event, "outputs")["adapter"] for event in trained} == {
        each["adapter"].digest for each in tried
    }
    failed = [event["job"]["name"] for event in events if event["eventType"] == "FAIL"]
    assert failed == ["adapter_sweep.variant.train"]


def made(store: ArtifactStore, kind: str) -> list[Artifact]:
    return [store.get(kind, folder.name) for folder in sorted((store.home / "artifacts" / kind).iterdir())]


def trail(store: ArtifactStore, adapter: Artifact) -> dict[str, Artifact]:
    """An adapter, its evaluation and the verdict, by kind."""
    found = {"adapter": adapter}
    for kind, before in (("evaluation", "adapter"), ("verdict", "evaluation")):
        (found[kind],) = [
            each for each in made(store, kind) if each.manifest["inputs"][before]["key"] == found[before].key
        ]
    return found


def keys(artifacts: dict[str, Artifact]) -> dict[str, str]:
    return {kind: artifact.key for kind, artifact in artifacts.items()}


def answer_loss(evaluation: Artifact) -> float:
    return json.loads(evaluation.file("report.json").read_text())["arms"]["adapter_with_contexts"][
        "answer_loss"
    ]


def versions(event: dict[str, Any], side: str) -> dict[str, str]:
    """Kind → version of an OpenLineage event's datasets."""
    return {
        each["name"].rpartition("artifacts/")[2]: each["facets"]["version"]["datasetVersion"]
        for each in event[side]
    }
