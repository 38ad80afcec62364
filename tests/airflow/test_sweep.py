from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jora_tasks.airflow.operators import run_variants
from jora_tasks.airflow.params import settings
from jora_tasks.airflow.sweep import SWEEP, best_of, checked_variants, measure_of, sweep_param
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.spec import GateConfig, RunSpec

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
    import json

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
