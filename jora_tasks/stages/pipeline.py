"""Runs a stage by name, and all of them in order: what the commands and the Airflow tasks call."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.costs import Recorder, recording
from jora_tasks.launching.member import LAUNCHED
from jora_tasks.lineage import snapshot_of
from jora_tasks.progress import BUILT, FAILED, REUSED, Progress
from jora_tasks.spec import RunSpec


@dataclass(frozen=True)
class Stage:
    """A stage: its function, the artifacts it takes and the kind it makes (None: a registration).

    Attributes:
      check: refuses what the stage reads beside artifacts, before any stage begins; None if that is nothing.
    """

    name: str
    function: str
    inputs: tuple[str, ...]
    kind: str | None
    check: str | None = None


STAGES = {
    stage.name: stage
    for stage in (
        Stage("corpus", "corpus:build_corpus", (), "corpus"),
        Stage("index", "index:build_index", ("corpus",), "index", "embed:open_embedder"),
        Stage("contexts", "contexts:retrieve_contexts", ("index",), "contexts", "contexts:check_inputs"),
        Stage("prompts", "prompts:assemble_prompts", ("contexts",), "prompts", "prompts:check_inputs"),
        Stage("train", "train:train_adapter", ("prompts",), "adapter"),
        Stage("evaluate", "evaluate:evaluate_adapter", ("adapter", "prompts"), "evaluation"),
        Stage("gate", "gate:judge_adapter", ("evaluation",), "verdict"),
        Stage("register", "register:register_adapter", ("adapter", "evaluation", "verdict"), None),
    )
}


def run_stage(
    name: str,
    spec: RunSpec,
    store: ArtifactStore,
    progress: Progress,
    given: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run one stage and say what came of it.

    Args:
      name: a key of `STAGES`.
      spec: the run's settings.
      store: where artifacts lie.
      progress: told what is going on, and how it ended.
      given: keys of input artifacts by kind; an input not given is the latest of ``spec.name``.

    Returns:
      A JSON object: stage, state (built or reused), seconds, cost (see `Recorder.told`), and for an
      artifact its kind, key, digest, path, counts and snapshot (digest of the corpus it was made for); for a
      registration its name, version, alias and verdict.
    """
    stage, recorder = STAGES[name], Recorder(store, name, spec.name)
    keys = given or {}
    inputs = {kind: store.given_or_latest(spec.name, kind, keys.get(kind)) for kind in stage.inputs}
    run = _function(stage.function)
    progress(name)
    with recording(recorder, progress) as told_of:
        try:
            result = run(spec, *inputs.values(), store, told_of)
        except BaseException as error:
            progress(name, state=FAILED, reason=type(error).__name__)
            raise
        recorder.state = state = REUSED if result.reused else BUILT
    seconds = recorder.cost().seconds
    if isinstance(result, Artifact):
        store.set_latest(spec.name, result)
        outcome: dict[str, Any] = {
            "kind": result.kind,
            "key": result.key,
            "digest": result.digest,
            "path": str(result.path),
            "counts": dict(result.counts),
            "snapshot": _snapshot(store, result, inputs),
        }
        told: dict[str, Any] = {"key": result.key}
    else:
        for artifact in inputs.values():  # of several variants, the one that was registered
            store.set_latest(spec.name, artifact)
        outcome = asdict(result)
        outcome.pop("reused")
        told = {key: outcome[key] for key in ("name", "version", "alias")}
        told["verdict"] = inputs["verdict"].key
    progress(name, state=state, seconds=seconds, **told)
    ended = {"stage": name, "state": state, "seconds": seconds, **recorder.told(), **outcome}
    if not {"JORA_AIRFLOW_RUN", LAUNCHED} & os.environ.keys():  # else Airflow or the launcher tells it
        from jora_tasks.events import tell_stage

        taken = {kind: artifact.key for kind, artifact in inputs.items()}
        tell_stage(store, ended, taken, spec.documents.path)
    return ended


def _snapshot(store: ArtifactStore, result: Artifact, inputs: Mapping[str, Artifact]) -> str | None:
    """Digest of the corpus that the stage ran for.

    It is that of the inputs: what was found made may have been made for an earlier corpus, in which nothing
    that it needs was different.
    """
    known = (snapshot_of(store, each) for each in inputs.values())
    return next((each for each in known if each), None) if inputs else snapshot_of(store, result)


def _function(name: str) -> Callable[..., Any]:
    """The function of ``module:function`` among the stages, which are imported when they are needed."""
    module, function = name.split(":")
    return getattr(importlib.import_module(f"jora_tasks.stages.{module}"), function)


def run_all(spec: RunSpec, store: ArtifactStore, progress: Progress) -> list[dict[str, Any]]:
    """Run every stage in order in this process; each takes what the ones before it made.

    Raises:
      InputError: as the stages do; for files and models that a later one reads, before the first begins.
    """
    for stage in STAGES.values():
        if stage.check:
            _function(stage.check)(spec, store)
    made: dict[str, str] = {}
    results = []
    for name, stage in STAGES.items():
        results.append(run_stage(name, spec, store, progress, made))
        if stage.kind:
            made[stage.kind] = results[-1]["key"]
    return results
