"""The gate: whether the evaluated adapter may become the champion, check by check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.evaluation.gate import champion_unchanged, judge, verdict
from jora_tasks.evaluation.page import render_verdict
from jora_tasks.progress import Progress
from jora_tasks.registry import Registry
from jora_tasks.spec import RunSpec
from jora_tasks.stages.canary import read_canaries

VERSION = 2

VERDICT, PAGE = "verdict.json", "verdict.html"


def judge_adapter(spec: RunSpec, evaluation: Artifact, store: ArtifactStore, progress: Progress) -> Artifact:
    """Hold an evaluation against what ``gate`` asks; the registry is read and stays as it is.

    Returns:
      A ``verdict`` artifact: ``verdict.json`` with ``name``, ``alias`` (champion or candidate), whether it
      ``passed``, ``checks``, ``adapter``, ``evaluation`` and ``champion`` (the one to beat now, or null);
      and ``verdict.html``.

    Raises:
      InputError: if no registry answers, or the evaluation lacks slices or canary questions asked for.
    """
    report = json.loads(evaluation.file("report.json").read_text(encoding="utf-8"))
    _check_evaluated(spec, report, evaluation)
    adapter = evaluation.manifest["inputs"]["adapter"]
    rival = Registry(store.home).rival(spec.name, adapter["digest"])
    champion = {"version": rival.version, "digest": rival.digest} if rival else None
    compared = report["champion"]["version"] if report["champion"] else None

    def write(folder: Path) -> dict[str, Any]:
        checks = [*judge(report, spec.gate), champion_unchanged(compared, rival.version if rival else None)]
        judged = {
            "name": spec.name,
            **verdict(checks),
            "adapter": {"key": adapter["key"], "digest": adapter["digest"]},
            "evaluation": {"key": evaluation.key, "digest": evaluation.digest},
            "champion": champion,
        }
        (folder / VERDICT).write_text(json.dumps(judged, indent=2) + "\n", encoding="utf-8")
        (folder / PAGE).write_text(render_verdict(judged), encoding="utf-8")
        return {
            "alias": judged["alias"],
            "checks": len(checks),
            "failed": [each["name"] for each in checks if not each["passed"]],
        }

    asked = spec.gate.making() | {"canary": bool(spec.gate.canary_path)}
    settings = {"name": spec.name, "gate": asked, "champion": champion}
    return store.build(
        "verdict", version=VERSION, settings=settings, inputs={"evaluation": evaluation}, write=write
    )


def _check_evaluated(spec: RunSpec, report: Mapping[str, Any], evaluation: Artifact) -> None:
    missing = [f"slice {name}" for name in spec.gate.slices if name not in report["slices"]]
    canaries = read_canaries(spec)
    if canaries and (report["canary"] or {}).get("digest") != canaries.source.digest:
        missing.append(f"canary questions {canaries.source.name} as they are")
    if missing:
        raise InputError(
            f"Evaluation {evaluation.key} was made without the {missing[0]}, which the gate asks for; "
            "run `jora evaluate` with this spec."
        )
