"""Registration against a real embedded MLflow; evaluations are made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jora_tasks.artifacts import Artifact, ArtifactStore, Source
from jora_tasks.errors import InputError
from jora_tasks.progress import Progress
from jora_tasks.provenance import SIGNING_KEY, statement_file, verify
from jora_tasks.registry import DIGEST, EVALUATION, Registry
from jora_tasks.spec import RegistryConfig, RunSpec, parse_spec
from jora_tasks.stages import register
from jora_tasks.stages.gate import judge_adapter
from jora_tasks.stages.register import Registration, register_adapter

SPEC = parse_spec({"name": "handbook", "documents": {"path": "/home/someone/private/handbook"}})


@pytest.fixture
def store(registry_store: ArtifactStore) -> ArtifactStore:
    return registry_store


def make_adapter(store: ArtifactStore, seed: int) -> Artifact:
    def write(folder: Path) -> dict[str, Any]:
        (folder / "adapter_config.json").write_text(json.dumps({"seed": seed}))
        return {"steps": 3, "final_loss": 0.25}

    return store.build(
        "adapter",
        version=1,
        settings={"seed": seed},
        inputs={},
        write=write,
        provenance={"airflow_run": "adapter_training/manual__1"},
    )


def figures(value: float, low: float, high: float) -> dict[str, Any]:
    interval = {"exact_match": [low, high], "f1": [low, high]}
    of, clusters = dict.fromkeys(interval, 80), dict.fromkeys(interval, 40)
    return {
        "exact_match": value,
        "f1": value,
        "n": 80,
        "interval": interval,
        "of": of,
        "clusters_of": clusters,
    }


def make_evaluation(
    store: ArtifactStore,
    adapter: Artifact,
    low: float = 0.2,
    champion: tuple[int, float] | None = None,
) -> Artifact:
    """An evaluation whose paired interval against the base, and the champion, begins at ``low``."""
    report: dict[str, Any] = {
        "base_model": {"kind": "model", "name": "tiny-base", "digest": "sha256:base"},
        "questions": 80,
        "clusters": {"n": 40, "by": {"document": 80}},
        "confidence": 0.95,
        "arms": {
            "base_with_contexts": figures(0.1, 0.05, 0.2),
            "adapter_with_contexts": figures(0.5, 0.4, 0.6),
        },
        "difference": {"against": "base_with_contexts", **figures(0.4, low, 0.6)},
        "champion": None,
        "retrieval": {"recall_at_k": {"1": 0.8, "4": 0.95}},
    }
    if champion is not None:
        version, from_ = champion
        against = {"against": "champion_with_contexts", **figures(0.1, from_, 0.3)}
        report["champion"] = {"version": version, "reason": None, "difference": against}

    def write(folder: Path) -> dict[str, Any]:
        (folder / "report.json").write_text(json.dumps(report))
        (folder / "report.html").write_text("<p>report</p>")
        return {}

    return store.build(
        "evaluation",
        version=1,
        settings={"low": low, "champion": list(champion or ())},
        inputs={"adapter": adapter, "prompts": Source("prompts", "p", "sha256:prompts")},
        write=write,
    )


def registered(store: ArtifactStore, adapter: Artifact, spec: RunSpec = SPEC, **kwargs: Any) -> Registration:
    evaluation = make_evaluation(store, adapter, **kwargs)
    judged = judge_adapter(spec, evaluation, store, Progress())
    return register_adapter(spec, adapter, evaluation, judged, store, Progress())


def failed(registration: Registration) -> list[str]:
    return [check["name"] for check in registration.verdict["checks"] if not check["passed"]]


def champion(store: ArtifactStore) -> int | None:
    found = Registry(store.home).get_champion("handbook")
    return found.version if found else None


def rollback(store: ArtifactStore) -> int:
    return Registry(store.home).rollback("handbook", by="someone", reason="complaints").version


def test_first_adapter_needs_only_the_base(store: ArtifactStore) -> None:
    result = registered(store, make_adapter(store, 1))
    assert (result.name, result.version, result.alias, result.reused) == ("handbook", 1, "champion", False)
    assert failed(result) == []
    assert champion(store) == 1


def test_no_better_than_the_base_stays_a_candidate(store: ArtifactStore) -> None:
    result = registered(store, make_adapter(store, 1), low=-0.1)
    assert (result.alias, failed(result), champion(store)) == (
        "candidate",
        ["exact_match_better_than_base"],
        None,
    )
    candidate = Registry(store.home).get_alias("handbook", "candidate")
    assert candidate is not None and candidate.version == 1


def test_next_adapter_has_to_beat_the_champion(store: ArtifactStore) -> None:
    registered(store, make_adapter(store, 1))
    worse = registered(store, make_adapter(store, 2), champion=(1, -0.05))
    assert (worse.version, worse.alias, champion(store)) == (2, "candidate", 1)
    better = registered(store, make_adapter(store, 3), champion=(1, 0.02))
    assert (better.version, better.alias, champion(store)) == (3, "champion", 3)
    assert rollback(store) == 1 == champion(store)


def test_second_time_makes_no_version(store: ArtifactStore) -> None:
    first, second = make_adapter(store, 1), make_adapter(store, 2)
    before = registered(store, first)
    again = registered(store, first)
    assert (again.version, again.alias, again.reused) == (before.version, "champion", True)
    registered(store, second, champion=(1, 0.02))
    again = registered(store, second, champion=(1, 0.02))
    assert (again.version, again.alias, again.reused, failed(again)) == (2, "champion", True, [])
    assert len(Registry(store.home).versions("handbook")) == 2
    assert len(list((store.home / "mlflow" / "artifacts").rglob("adapter_config.json"))) == 2


def test_same_adapter_with_another_evaluation_is_another_version(store: ArtifactStore) -> None:
    adapter = make_adapter(store, 1)
    assert registered(store, adapter, low=-0.1).version == 1
    assert registered(store, adapter, low=0.1).version == 2


def test_a_champion_rolled_back_stays_back(store: ArtifactStore) -> None:
    first, second = make_adapter(store, 1), make_adapter(store, 2)
    registered(store, first)
    registered(store, second, champion=(1, 0.02))
    rollback(store)
    again = registered(store, second, champion=(1, 0.02))
    assert (again.alias, again.reused, champion(store)) == ("candidate", True, 1)


def test_weights_rolled_back_stay_back_under_another_evaluation(store: ArtifactStore) -> None:
    first, second, third = (make_adapter(store, number) for number in (1, 2, 3))
    registered(store, first)
    registered(store, second, champion=(1, 0.02))
    registered(store, third, champion=(2, 0.02))
    assert (rollback(store), rollback(store)) == (2, 1)
    again = registered(store, third, champion=(1, 0.03))
    assert (again.version, again.reused, again.alias, champion(store)) == (4, False, "candidate", 1)


def test_the_champions_weights_await_no_approval(store: ArtifactStore) -> None:
    registered(store, make_adapter(store, 1))
    second = make_adapter(store, 2)
    registered(store, second, champion=(1, 0.02))
    held = SPEC.model_copy(update={"registry": RegistryConfig(promotion="approval")})
    again = registered(store, second, spec=held, champion=(1, 0.03))
    assert (again.version, again.verdict["passed"], again.awaiting_approval) == (3, True, False)


@pytest.mark.parametrize(("promotion", "awaiting"), [("none", False), ("approval", True)])
def test_promotion_can_be_off_and_done_later(store: ArtifactStore, promotion: str, awaiting: bool) -> None:
    held = SPEC.model_copy(update={"registry": RegistryConfig(promotion=promotion)})
    adapter = make_adapter(store, 1)
    result = registered(store, adapter, spec=held)
    assert (result.alias, result.verdict["alias"], champion(store)) == ("candidate", "champion", None)
    assert (result.promotion, result.awaiting_approval) == (promotion, awaiting)
    done = Registry(store.home).promote("handbook", 1, by="someone", reason="good enough")
    assert (done.previous, champion(store)) == (None, 1)


def test_a_kill_before_promotion_is_made_good(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_adapter(store, 1)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(register.Registry, "promote", killed)
        with pytest.raises(KeyboardInterrupt):
            registered(store, adapter)
    assert champion(store) is None
    again = registered(store, adapter)
    assert (again.version, again.alias, again.reused) == (1, "champion", True)


def test_evaluated_before_the_champion_changed(store: ArtifactStore) -> None:
    """Two runs were evaluated side by side, without a champion; the second never met the first."""
    registered(store, make_adapter(store, 1))
    late = registered(store, make_adapter(store, 2))
    assert (late.alias, failed(late), champion(store)) == ("candidate", ["champion_unchanged"], 1)
    check = late.verdict["checks"][-1]
    assert (check["expected"], check["actual"]) == ("champion to beat: none, as evaluated", "version 1")


def test_judged_before_the_champion_changed(store: ArtifactStore) -> None:
    """Both were judged when there was no champion; registration looks again."""
    adapters = [make_adapter(store, seed) for seed in (1, 2)]
    evaluations = [make_evaluation(store, adapter) for adapter in adapters]
    verdicts = [judge_adapter(SPEC, evaluation, store, Progress()) for evaluation in evaluations]
    first, late = (
        register_adapter(SPEC, *each, store, Progress())
        for each in zip(adapters, evaluations, verdicts, strict=True)
    )
    assert (first.alias, first.verdict["passed"]) == ("champion", True)
    assert (late.alias, failed(late), late.awaiting_approval) == ("candidate", ["champion_unchanged"], False)
    assert [check["name"] for check in late.verdict["checks"]].count("champion_unchanged") == 1


def test_verdict_on_another_evaluation(store: ArtifactStore) -> None:
    adapter = make_adapter(store, 1)
    one, other = (make_evaluation(store, adapter, low=low) for low in (0.1, 0.2))
    judged = judge_adapter(SPEC, one, store, Progress())
    with pytest.raises(InputError, match="run `jora gate`"):
        register_adapter(SPEC, adapter, other, judged, store, Progress())
    assert Registry(store.home).versions("handbook") == []


def test_evaluation_of_another_adapter(store: ArtifactStore) -> None:
    evaluation = make_evaluation(store, make_adapter(store, 1))
    judged = judge_adapter(SPEC, evaluation, store, Progress())
    with pytest.raises(InputError, match="run `jora evaluate`"):
        register_adapter(SPEC, make_adapter(store, 2), evaluation, judged, store, Progress())
    assert Registry(store.home).versions("handbook") == []


def test_run_tells_figures_and_origin_without_local_paths(store: ArtifactStore) -> None:
    adapter = make_adapter(store, 1)
    evaluation = make_evaluation(store, adapter)
    judged = judge_adapter(SPEC, evaluation, store, Progress())
    register_adapter(SPEC, adapter, evaluation, judged, store, Progress())
    client = Registry(store.home)._client()
    version = client.get_model_version("handbook", "1")
    run = client.get_run(version.run_id)

    assert run.data.metrics["adapter_with_contexts.exact_match"] == 0.5
    assert run.data.metrics["minus_base_with_contexts.exact_match.low"] == 0.2
    assert run.data.metrics["recall_at.4"] == 0.95
    assert run.data.metrics["training.final_loss"] == 0.25
    assert run.data.params["documents.path"] == "handbook"
    assert run.data.params["training.learning_rate"] == "0.001"
    assert run.data.params["lora.target_modules"] == "all-linear"
    assert version.tags[DIGEST] == adapter.digest
    assert version.tags[EVALUATION] == evaluation.digest
    assert version.tags["jora.prompts_digest"] == "sha256:prompts"
    assert version.tags["jora.base_model"] == "tiny-base"
    assert version.tags["jora.airflow_run"] == "adapter_training/manual__1"
    assert "Exact match 0.500 [0.400, 0.600] on 80 held-out questions" in version.description

    told: Sequence[str] = [
        *run.data.params.values(),
        *run.data.tags.values(),
        *version.tags.values(),
        version.description,
    ]
    assert not [text for text in told if "private" in text or str(store.home) in text]
    files = {item.path for item in client.list_artifacts(version.run_id, "report")}
    assert files == {f"report/{kind}.{end}" for kind in ("report", "verdict") for end in ("json", "html")}


def test_a_promotion_tells_its_run_verdict_and_reason(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JORA_AIRFLOW_RUN", "adapter_training/manual__1")
    registered(store, make_adapter(store, 1))
    (told,) = Registry(store.home).transitions("handbook")
    assert (told.action, told.version, told.previous) == ("promote", 1, None)
    assert told.by == f"Airflow run {told.airflow_run}" == "Airflow run adapter_training/manual__1"
    assert store.get("verdict", told.verdict).counts["alias"] == "champion"
    assert "Exact match 0.500" in told.reason


def test_another_became_champion_while_this_one_was_registered(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, other = make_adapter(store, 1), make_adapter(store, 2)
    held = SPEC.model_copy(update={"registry": RegistryConfig(promotion="none")})
    registered(store, other, spec=held)
    put = Registry.register

    def slowly(registry: Registry, *args: Any, **kwargs: Any) -> int:
        version = put(registry, *args, **kwargs)
        Registry(store.home).promote("handbook", 1, by="someone", reason="was faster")
        return version

    monkeypatch.setattr(Registry, "register", slowly)
    late = registered(store, adapter)
    assert (late.version, late.alias, champion(store)) == (2, "candidate", 1)
    assert failed(late) == ["champion_unchanged"]


def test_a_signed_statement_lies_beside_the_version_and_in_the_home(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_provenance import SECRET, write_keys

    private, public = write_keys(tmp_path, "signer", SECRET)
    adapter = make_adapter(store, 1)
    monkeypatch.setenv(SIGNING_KEY, str(public))
    with pytest.raises(InputError, match="no private Ed25519 key"):
        registered(store, adapter)
    assert Registry(store.home).versions("handbook") == []
    monkeypatch.setenv(SIGNING_KEY, str(private))
    registered(store, adapter)
    assert [link.state for link in verify(store, adapter.key, public)] == ["ok", "ok", "ok"]
    (beside,) = (store.home / "mlflow" / "artifacts").rglob(statement_file(store, adapter.key).name)
    assert beside.read_bytes() == statement_file(store, adapter.key).read_bytes()
    written = [file.read_bytes() for file in store.home.rglob("*") if file.is_file()]
    secret = private.read_bytes().splitlines()[1]
    assert not [content for content in written if secret in content or SECRET in content]
