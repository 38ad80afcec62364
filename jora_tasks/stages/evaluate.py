"""Evaluation: what the base, the adapter and the champion answer to the held-out questions."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jora_tasks.artifacts import Artifact, ArtifactStore, Input, Source
from jora_tasks.errors import InputError
from jora_tasks.evaluation.answerer import Answerer
from jora_tasks.evaluation.calibration import score_bins
from jora_tasks.evaluation.generation import check_lengths
from jora_tasks.evaluation.summary import (
    ADAPTER,
    BASE,
    CHAMPION,
    CLOSED_BOOK,
    GOLD,
    Prediction,
    Resampling,
    by_slice,
    compare,
    retrieval_measures,
    score_arm,
    summarise,
)
from jora_tasks.models import base_model_folder, model_source
from jora_tasks.progress import Progress
from jora_tasks.registry import BASE_MODEL, RegisteredAdapter, Registry
from jora_tasks.spec import RunSpec
from jora_tasks.stages import held_out
from jora_tasks.stages.answering import PREDICTIONS, Arm, Counter, answers_of, said_of, write_predictions
from jora_tasks.stages.canary import CANARY, ask_canaries, read_canaries, score_canaries
from jora_tasks.stages.drifting import drift_report
from jora_tasks.stages.held_out import Asked, HeldOut, contexts_of, prompts_config, read_held_out
from jora_tasks.stages.slicing import slice_names
from jora_tasks.trainer.config import read_config

VERSION = 5

CANARY_PREDICTIONS, REPORT, PAGE = "canary.parquet", "report.json", "report.html"


def evaluate_adapter(
    spec: RunSpec, adapter: Artifact, prompts: Artifact, store: ArtifactStore, progress: Progress
) -> Artifact:
    """Ask the test questions of the base, the adapter and the champion, and compare them.

    The base answers with and without contexts; the adapter with contexts, and with nothing but the chunks
    that hold the evidence, which shows what retrieval costs. The champion is that of the line
    ``spec.name``. Where the adapter is itself the champion, it is compared with the champion that it was
    registered against.

    Returns:
      An ``evaluation`` artifact: predictions.parquet (a row per question and arm), report.json and
      report.html; where ``gate.canary_path`` names questions, also canary.parquet of their answers.

    Raises:
      InputError: without a test question, for slices or canary questions that cannot be used, if no registry
        answers, if the adapter was made for another base model, or if that has too few positions for the
        prompts and answers.
    """
    registry = Registry(store.home)
    rival = registry.rival(spec.name, adapter.digest)
    contexts = contexts_of(prompts, store)
    base_folder = base_model_folder(spec.model.base, store.home)
    questions = read_held_out(prompts, contexts, spec, base_folder, store)
    canaries = read_canaries(spec)
    if canaries and contexts is None:
        raise InputError("gate.canary_path needs the contexts of the prompts; run `jora contexts` again.")
    base = model_source(base_folder, spec.model.base)
    _check_base(adapter, base)
    every = [each for asked in questions.asked.values() for each in asked]
    check_lengths(
        [each.prompt for each in every],
        spec.evaluation.max_new_tokens,
        read_config(base_folder),
        [each.known for each in every],
    )
    obstacle = _obstacle(rival, base)
    config = prompts_config(prompts)

    arms = [
        Arm(CLOSED_BOOK, held_out.CLOSED),
        Arm(BASE, held_out.OPEN),
        Arm(ADAPTER, held_out.OPEN, adapter, lambda: adapter.path),
    ]
    if questions.asked[held_out.GOLD]:
        arms.append(Arm(GOLD, held_out.GOLD, adapter, lambda: adapter.path))
    answered: dict[str, Artifact] = {}
    canary_answers: dict[str, Artifact] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if rival is not None and obstacle is None:
            source = Source("adapter", f"{rival.name} version {rival.version}", rival.digest)
            folder = functools.cache(functools.partial(_fetch_adapter, rival, store, registry, Path(scratch)))
            arms.append(Arm(CHAMPION, held_out.OPEN, source, folder))
        tested = _canary_arms(arms) if canaries else []
        answerer = Answerer(base_folder, spec.model, spec.training.mesh, spec.evaluation, store.home)
        total = sum(len(questions.asked[arm.prompt]) for arm in arms)
        counter = Counter(progress, total + len(tested) * len(canaries.questions if canaries else ()))
        answer = functools.partial(answers_of, spec, base, store, answerer, counter)
        for arm in arms:
            answered[arm.name] = answer(arm, {"prompts": prompts}, functools.partial(_asked, questions, arm))
        if canaries and contexts:
            asked = functools.cache(
                functools.partial(ask_canaries, canaries, spec, contexts, config, base_folder, store)
            )
            searched = contexts.manifest["inputs"]["index"]
            index = Source("index", searched["key"], searched["digest"])
            made_of: dict[str, Input] = {"canary": canaries.source, "prompts": prompts, "index": index}
            canary_answers = {arm.name: answer(arm, made_of, asked) for arm in tested}

    settings = {
        **spec.evaluation.resampling(),
        "cluster_by": spec.evaluation.cluster_by,
        "champion": {"version": rival.version, "digest": rival.digest} if rival else None,
    }
    if contexts is not None and slice_names(spec):
        # The contexts have no part of what slices are made of, and may be the same without it.
        made_of_it = {kind: contexts.manifest["inputs"][kind]["digest"] for kind in ("index", "questions")}
        settings["slices"] = {"by": slice_names(spec), **made_of_it}
    inputs: dict[str, Input] = {"adapter": adapter, "prompts": prompts, "base_model": base, **answered}
    if contexts is not None:
        inputs["contexts"] = contexts
    if canaries:
        inputs |= {
            "canary": canaries.source,
            **{f"canary_{arm}": each for arm, each in canary_answers.items()},
        }

    def write(folder: Path) -> dict[str, Any]:
        drift = drift_report(rival, contexts, store)
        rows = {}
        for arm in arms:
            put = [(each.question, each.shown) for each in questions.asked[arm.prompt]]
            rows[arm.name] = score_arm(arm.name, put, said_of(answered[arm.name]), config.abstention)
        report = _report(spec, adapter, base, rows, rival, obstacle, contexts, questions, drift)
        if canaries:
            said = {arm: said_of(each) for arm, each in canary_answers.items()}
            scored, report["canary"] = score_canaries(canaries, said, config, rival)
            write_predictions(scored, folder / CANARY_PREDICTIONS)
        write_predictions(rows, folder / PREDICTIONS)
        lengths = {each.question.id: len(each.prompt) for each in questions.asked[held_out.OPEN]}
        _write(folder, rows, report, adapter, prompts, lengths)
        return {
            "questions": len(questions.questions),
            "clusters": report["clusters"]["n"],
            "exact_match": {name: report["arms"][name]["exact_match"] for name in rows},
        }

    return store.build("evaluation", version=VERSION, settings=settings, inputs=inputs, write=write)


def _asked(questions: HeldOut, arm: Arm) -> Sequence[Asked]:
    return questions.asked[arm.prompt]


def _canary_arms(arms: Sequence[Arm]) -> list[Arm]:
    """The adapter, and whom it may not fall behind: the champion, or the base where there is none."""
    by_name = {arm.name: arm for arm in arms}
    return [
        dataclasses.replace(arm, prompt=CANARY)
        for arm in (by_name[ADAPTER], by_name.get(CHAMPION, by_name[BASE]))
    ]


def _check_base(adapter: Artifact, base: Source) -> None:
    for reference in adapter.manifest["inputs"].values():
        if reference["kind"] == base.kind and reference["digest"] != base.digest:
            raise InputError(
                f"Adapter {adapter.key} was trained over {reference['name']} ({reference['digest'][:19]}), "
                f"not over {base.name} ({base.digest[:19]}); set model.base to the model it was trained over."
            )


def _obstacle(rival: RegisteredAdapter | None, base: Source) -> str | None:
    """Why the champion cannot answer the same prompts, or None."""
    if rival is None or rival.tags.get(BASE_MODEL, base.digest) == base.digest:
        return None
    return "it was trained over another base model"


def _fetch_adapter(
    registered: RegisteredAdapter, store: ArtifactStore, registry: Registry, scratch: Path
) -> Path:
    """The registered adapter's files: the home's artifact if it is still there, else the registry's."""
    try:
        artifact = store.get("adapter", registered.key)
        if artifact.digest == registered.digest:
            return artifact.path
    except InputError:
        pass
    return registry.download(registered, scratch)


def _report(
    spec: RunSpec,
    adapter: Artifact,
    base: Source,
    rows: Mapping[str, list[Prediction]],
    rival: RegisteredAdapter | None,
    obstacle: str | None,
    contexts: Artifact | None,
    questions: HeldOut,
    drift: Mapping[str, Any],
) -> dict[str, Any]:
    settings = spec.evaluation
    resampling = Resampling(settings.bootstrap_samples, settings.confidence, settings.seed)
    champion = None
    if rival is not None:
        champion = {
            "version": rival.version,
            "digest": rival.digest,
            "reason": obstacle,
            "difference": compare(rows[ADAPTER], rows[CHAMPION], resampling) if CHAMPION in rows else None,
        }
    return {
        "adapter": {"key": adapter.key, "digest": adapter.digest},
        "base_model": base.reference(),
        "questions": len(rows[ADAPTER]),
        "clusters": {
            "n": len({question.cluster for question in questions.questions}),
            "by": dict(questions.clustered_by),
        },
        "without_gold_context": questions.without_gold,
        "confidence": settings.confidence,
        "bootstrap_samples": settings.bootstrap_samples,
        "arms": {name: summarise(scored, resampling) for name, scored in rows.items()},
        "difference": compare(rows[ADAPTER], rows[BASE], resampling),
        "champion": champion,
        "retrieval": {
            **retrieval_measures(questions.questions, resampling),
            "recall_at_k": contexts.counts.get("recall_at_k") if contexts else None,
            "retriever": contexts.counts.get("retriever") if contexts else None,
            "calibration": score_bins(questions.scored),
        },
        "drift": drift,
        "slices": by_slice(rows, resampling),
        "canary": None,
    }


def _write(
    folder: Path,
    rows: Mapping[str, list[Prediction]],
    report: Mapping[str, Any],
    adapter: Artifact,
    prompts: Artifact,
    prompt_lengths: Mapping[str, int],
) -> None:
    from jora_tasks.evaluation.report import read_history, read_lengths, render_report

    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    page = render_report(
        report,
        rows,
        history=read_history(adapter.file("metrics.jsonl")),
        lengths=read_lengths(prompts.file("prompts.parquet")),
        prompt_lengths=prompt_lengths,
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
