"""Registration: a version in the registry, and the champion's place if the verdict allows it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_tasks import __version__
from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.evaluation.gate import CHAMPION_UNCHANGED, champion_unchanged, verdict
from jora_tasks.evaluation.summary import ADAPTER, BASE
from jora_tasks.progress import Progress
from jora_tasks.provenance import sign_adapter
from jora_tasks.registry import (
    BASE_MODEL,
    CANDIDATE,
    CHAMPION,
    COMPARED_WITH,
    DIGEST,
    EVALUATION,
    EVALUATION_KEY,
    KEY,
    PROMPTS,
    VERDICT_KEY,
    ChampionMoved,
    RegisteredAdapter,
    Registry,
    actor,
)
from jora_tasks.spec import RunSpec, is_url
from jora_tasks.stages.gate import PAGE, VERDICT

# Settings that may hold a local path; a registry is shared, so it gets the last name alone.
_PATHS = (
    "documents.path",
    "questions.path",
    "index.embedder",
    "model.base",
    "lora.init_from",
    "gate.canary_path",
)


@dataclass(frozen=True)
class Registration:
    """What became of an adapter in the registry.

    Attributes:
      name: of the registered model.
      version: its version there.
      alias: "champion" if this version is the champion now, else "candidate".
      reused: whether the version was there already.
      verdict: the gate's, with each check's expected and actual; the champion is looked at once more.
      promotion: what follows a passed gate, as ``registry.promotion`` says.
      awaiting_approval: whether a person is to be asked.
    """

    name: str
    version: int
    alias: str
    reused: bool
    verdict: dict[str, Any]
    promotion: str
    awaiting_approval: bool


def register_adapter(
    spec: RunSpec,
    adapter: Artifact,
    evaluation: Artifact,
    judgement: Artifact,
    store: ArtifactStore,
    progress: Progress,
) -> Registration:
    """Register an adapter with its evaluation; the same two are registered once.

    A version becomes champion if the verdict says so, ``registry.promotion`` is automatic, the champion is
    still the one that it was compared with, and it was not champion before: a champion that people rolled
    back stays back.

    By option the statement over the adapter is signed, and kept beside the version and in the home.

    Raises:
      InputError: if the evaluation is of another adapter, or the verdict on another evaluation; if the key to
        sign with is none.
    """
    _check_trio(adapter, evaluation, judgement)
    registry = Registry(store.home)
    report = json.loads(evaluation.file("report.json").read_text(encoding="utf-8"))
    before = registry.get_champion(spec.name)
    judged = _judge_now(judgement, registry.rival(spec.name, adapter.digest))

    signed = sign_adapter(store, adapter)
    found = registry.find_version(spec.name, adapter.digest, evaluation.digest)
    if found is None:
        progress("register", done=0, total=1, unit="versions")
        version = registry.register(
            adapter.path,
            spec.name,
            metrics=_metrics(report, adapter),
            tags=_tags(adapter, evaluation, judgement, report),
            params=dict(_params(spec.model_dump(mode="json"))),
            reports=[
                *(evaluation.file(name) for name in ("report.json", "report.html")),
                *(judgement.file(name) for name in (VERDICT, PAGE)),
                *([signed] if signed else []),
            ],
            description=_describe(report),
        )
    else:
        version = found.version
    newest = registry.get_alias(spec.name, CANDIDATE)
    if newest is None or newest.version < version:
        registry.set_alias(spec.name, CANDIDATE, version)

    promotion = spec.registry.promotion if judged["passed"] else "none"
    if _settled(registry, spec.name, version, adapter.digest):
        promotion = "none"
    if promotion == "automatic":
        try:
            registry.promote(
                spec.name,
                version,
                by=actor(),
                reason=_describe(report),
                expected=before.version if before else None,
                verdict=judgement.key,
                airflow_run=os.environ.get("JORA_AIRFLOW_RUN", ""),
            )
        except ChampionMoved:  # since it was judged, and it never met the new one
            judged = _judge_now(judgement, registry.rival(spec.name, adapter.digest))
    champion = registry.get_champion(spec.name)
    alias = CHAMPION if champion is not None and champion.version == version else CANDIDATE
    awaiting = promotion == "approval"
    return Registration(
        spec.name, version, alias, found is not None, judged, spec.registry.promotion, awaiting
    )


def _settled(registry: Registry, name: str, version: int, digest: str) -> bool:
    """Whether people alone may move it: it was champion, or its weights are or were rolled back."""
    moves = registry.transitions(name)
    digests: dict[int | None, str] = {each.version: each.digest for each in registry.versions(name)}
    weights = {digests.get(each.previous) for each in moves if each.action == "rollback"}
    weights |= {digests.get(each.version) for each in moves[-1:]}
    return digest in weights or any(each.version == version for each in moves)


def _check_trio(adapter: Artifact, evaluation: Artifact, judgement: Artifact) -> None:
    evaluated = evaluation.manifest["inputs"]["adapter"]
    if evaluated["digest"] != adapter.digest:
        raise InputError(
            f"Evaluation {evaluation.key} is of adapter {evaluated['key']}, not of {adapter.key}; "
            "run `jora evaluate` for this adapter."
        )
    judged = judgement.manifest["inputs"]["evaluation"]
    if judged["digest"] != evaluation.digest:
        raise InputError(
            f"Verdict {judgement.key} is on evaluation {judged['key']}, not on {evaluation.key}; "
            "run `jora gate` for this evaluation."
        )


def _judge_now(judgement: Artifact, rival: RegisteredAdapter | None) -> dict[str, Any]:
    """The verdict, and whether the champion to beat is still the one that the gate saw."""
    judged = json.loads(judgement.file(VERDICT).read_text(encoding="utf-8"))
    seen = judged["champion"]["version"] if judged["champion"] else None
    current = rival.version if rival else None
    if seen == current:
        return judged
    others = [each for each in judged["checks"] if each["name"] != CHAMPION_UNCHANGED]
    return judged | verdict([*others, champion_unchanged(seen, current)])


def _metrics(report: Mapping[str, Any], adapter: Artifact) -> dict[str, float]:
    metrics: dict[str, float] = {"test_questions": report["questions"]}
    for arm, figures in report["arms"].items():
        metrics |= _with_interval(arm, figures)
    metrics |= _with_interval(f"minus_{BASE}", report["difference"])
    if report["champion"] and report["champion"]["difference"]:
        metrics |= _with_interval("minus_champion", report["champion"]["difference"])
    metrics |= _numbers("recall_at", report["retrieval"]["recall_at_k"])
    return metrics | _numbers("training", adapter.counts)


def _with_interval(prefix: str, figures: Mapping[str, Any]) -> dict[str, float]:
    metrics = {}
    for measure, (low, high) in figures["interval"].items():
        metrics[f"{prefix}.{measure}"] = figures[measure]
        metrics[f"{prefix}.{measure}.low"] = low
        metrics[f"{prefix}.{measure}.high"] = high
    return metrics


def _numbers(prefix: str, value: Any) -> dict[str, float]:
    """The numbers of a nested mapping, by dotted name."""
    if isinstance(value, Mapping):
        return {
            name: number
            for key, item in value.items()
            for name, number in _numbers(f"{prefix}.{key}", item).items()
        }
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {prefix: float(value)} if is_number else {}


def _tags(
    adapter: Artifact, evaluation: Artifact, judgement: Artifact, report: Mapping[str, Any]
) -> dict[str, str]:
    compared = report["champion"]["version"] if report["champion"] else ""
    tags = {
        DIGEST: adapter.digest,
        KEY: adapter.key,
        EVALUATION: evaluation.digest,
        EVALUATION_KEY: evaluation.key,
        VERDICT_KEY: judgement.key,
        PROMPTS: evaluation.manifest["inputs"]["prompts"]["digest"],
        "jora.base_model": report["base_model"]["name"],
        BASE_MODEL: report["base_model"]["digest"],
        "jora.code_version": __version__,
        COMPARED_WITH: str(compared),
    }
    airflow_run = adapter.manifest.get("provenance", {}).get("airflow_run")
    return tags | ({"jora.airflow_run": str(airflow_run)} if airflow_run else {})


def _params(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flat settings, local paths cut to their last name."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _params(value, f"{name}.")
        elif name in _PATHS and (is_url(value) or Path(value).is_absolute() or Path(value).exists()):
            yield name, Path(value).name
        elif isinstance(value, str):
            yield name, value
        else:
            yield name, json.dumps(value)


def _describe(report: Mapping[str, Any]) -> str:
    figures, base = report["arms"][ADAPTER], report["arms"][BASE]
    low, high = figures["interval"]["exact_match"]
    return (
        f"Exact match {figures['exact_match']:.3f} [{low:.3f}, {high:.3f}] on {figures['n']} "
        f"held-out questions; the base with the same contexts {base['exact_match']:.3f}."
    )
