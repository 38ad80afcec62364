"""Evaluation: what the base, the adapter and the champion answer to the held-out questions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jora_tasks.artifacts import Artifact, ArtifactStore, Input
from jora_tasks.evaluation.calibration import score_bins
from jora_tasks.evaluation.citations import by_words
from jora_tasks.evaluation.summary import (
    ADAPTER,
    BASE,
    CHAMPION,
    Prediction,
    Resampling,
    by_slice,
    compare,
    retrieval_measures,
    score_arm,
    summarise,
)
from jora_tasks.progress import Progress
from jora_tasks.spec import RunSpec
from jora_tasks.stages import held_out
from jora_tasks.stages.answering import PREDICTIONS, Answering, Counter, said_of, write_predictions
from jora_tasks.stages.arms import Plan, planned
from jora_tasks.stages.canary import score_canaries
from jora_tasks.stages.drifting import drift_report
from jora_tasks.stages.judging import support_told
from jora_tasks.stages.slicing import slice_names

VERSION = 6

CANARY_PREDICTIONS, REPORT, PAGE = "canary.parquet", "report.json", "report.html"


def evaluate_adapter(
    spec: RunSpec, adapter: Artifact, prompts: Artifact, store: ArtifactStore, progress: Progress
) -> Artifact:
    """Ask the test questions of the base, the adapter and the champion, as planned, and compare them.

    Returns:
      An ``evaluation`` artifact: predictions.parquet (a row per question and arm), report.json and
      report.html; where ``gate.canary_path`` names questions, also canary.parquet of their answers.

    Raises:
      InputError: see `jora_tasks.stages.arms.planned`.
    """
    with planned(spec, adapter, prompts, store) as plan:
        counter = Counter(progress, "evaluate", sum(len(arm.questions) for arm in plan.every_arm))
        answering = Answering(spec, plan.base, plan.base_folder, store, counter, plan.before_the_first)
        answered = {arm.name: answering.whole(arm) for arm in plan.arms}
        canary_answers = {arm.name: answering.whole(arm) for arm in plan.canary_arms}

    rival, contexts, canaries = plan.rival, plan.contexts, plan.canaries
    settings = {
        **spec.evaluation.resampling(),
        "cluster_by": spec.evaluation.cluster_by,
        "champion": {"version": rival.version, "digest": rival.digest} if rival else None,
    }
    if contexts is not None and slice_names(spec):
        # The contexts have no part of what slices are made of, and may be the same without it.
        made_of_it = {kind: contexts.manifest["inputs"][kind]["digest"] for kind in ("index", "questions")}
        settings["slices"] = {"by": slice_names(spec), **made_of_it}
    inputs: dict[str, Input] = {"adapter": adapter, "prompts": prompts, "base_model": plan.base, **answered}
    if contexts is not None:
        inputs["contexts"] = contexts
    if plan.judge:
        inputs["nli_model"] = plan.judge.source
    if canaries:
        inputs |= {
            "canary": canaries.source,
            **{f"canary_{arm}": each for arm, each in canary_answers.items()},
        }

    def write(folder: Path) -> dict[str, Any]:
        drift = drift_report(rival, contexts, store)
        judge = plan.judge.model if plan.judge else by_words
        rows = {}
        for arm in plan.arms:
            put = [(each.question, each.shown) for each in arm.asked()]
            said = said_of(answered[arm.name])
            rows[arm.name] = score_arm(arm.name, put, said, plan.config.abstention, judge)
        report = _report(spec, adapter, plan, rows, drift)
        if canaries:
            told = {arm: said_of(each) for arm, each in canary_answers.items()}
            scored, report["canary"] = score_canaries(canaries, told, plan.config, rival)
            write_predictions(scored, folder / CANARY_PREDICTIONS)
        write_predictions(rows, folder / PREDICTIONS)
        lengths = {each.question.id: len(each.prompt) for each in plan.questions.asked[held_out.OPEN]}
        _write(folder, rows, report, adapter, prompts, lengths)
        return {
            "questions": len(plan.questions.questions),
            "clusters": report["clusters"]["n"],
            "exact_match": {name: report["arms"][name]["exact_match"] for name in rows},
        }

    return store.build("evaluation", version=VERSION, settings=settings, inputs=inputs, write=write)


def _report(
    spec: RunSpec,
    adapter: Artifact,
    plan: Plan,
    rows: Mapping[str, list[Prediction]],
    drift: Mapping[str, Any],
) -> dict[str, Any]:
    settings, questions = spec.evaluation, plan.questions
    resampling = Resampling(settings.bootstrap_samples, settings.confidence, settings.seed)
    champion = None
    if plan.rival is not None:
        champion = {
            "version": plan.rival.version,
            "digest": plan.rival.digest,
            "reason": plan.obstacle,
            "difference": compare(rows[ADAPTER], rows[CHAMPION], resampling) if CHAMPION in rows else None,
        }
    searched = plan.contexts.counts if plan.contexts else {}
    return {
        "adapter": {"key": adapter.key, "digest": adapter.digest},
        "base_model": plan.base.reference(),
        "questions": len(rows[ADAPTER]),
        "clusters": {
            "n": len({question.cluster for question in questions.questions}),
            "by": dict(questions.clustered_by),
        },
        "without_gold_context": questions.without_gold,
        "confidence": settings.confidence,
        "bootstrap_samples": settings.bootstrap_samples,
        "arms": {name: summarise(scored, resampling) for name, scored in rows.items()},
        "citation_support": support_told(plan.judge, plan.config.cite),
        "difference": compare(rows[ADAPTER], rows[BASE], resampling),
        "champion": champion,
        "retrieval": {
            **retrieval_measures(questions.questions, resampling),
            "recall_at_k": searched.get("recall_at_k"),
            "retriever": searched.get("retriever"),
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
