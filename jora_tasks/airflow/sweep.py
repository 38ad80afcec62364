"""Several variants of a run, trained from the same contexts, and the choice of the best."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import Param

from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.spec import LOWER_IS_BETTER, GateConfig, RunSpec

SWEEP = "sweep"
SECTIONS = ("prompts", "model", "lora", "training")
"""Sections whose settings may differ between variants: what comes after the contexts they share."""

_MOST = 32
_ARM = "adapter_with_contexts"


def sweep_param() -> Param:
    """The form's field of the variants."""
    return Param(
        [{"lora.r": 8}, {"lora.r": 16}],
        type="array",
        items={"type": "object"},
        minItems=1,
        maxItems=_MOST,
        title="Variants",
        description='Settings of each variant, as in [{"lora.r": 8}, {"model.base": "other", "lora.r": 16}]; '
        f"of the sections {', '.join(SECTIONS)}. The rest is the same for all.",
        section="Sweep",
    )


def checked_variants(given: Any, known: Sequence[str]) -> list[dict[str, Any]]:
    """The variants, if they are such.

    Args:
      given: the form's value.
      known: names of all settings.

    Raises:
      InputError: for what is no list of settings, a setting of another section, or the same variant twice.
    """
    if not isinstance(given, list) or not 1 <= len(given) <= _MOST:
        raise InputError(f'{SWEEP}: give a list of 1 to {_MOST} variants, as in [{{"lora.r": 8}}].')
    for number, variant in enumerate(given):
        where = f"{SWEEP}, variant {number}"
        if not isinstance(variant, dict):
            raise InputError(f'{where} is {variant!r}; give settings by name, as in {{"lora.r": 8}}.')
        for name in variant:
            if name not in known or name.partition(".")[0] not in SECTIONS:
                raise InputError(
                    f"{where}: {name} is no setting of {', '.join(SECTIONS)}, as lora.r is one; "
                    "set it for the whole run."
                )
        if variant in given[:number]:
            raise InputError(f"{where} is the same as variant {given.index(variant)}; leave one out.")
    return given


def best_of(tried: Sequence[Mapping[str, Any]], store: ArtifactStore, spec: RunSpec) -> Mapping[str, Any]:
    """The variant to register: of those that passed the gate, or else of all, the best by its first measure.

    Args:
      tried: of each variant that came to a verdict, what its stages returned, by kind.

    Raises:
      InputError: if there is none.
    """
    if not tried:
        raise InputError(f"{SWEEP}: no variant came to a verdict; their tasks' logs say why.")
    return max(tried, key=lambda each: score(each, store, measure_of(spec.gate)))


def measure_of(gate: GateConfig) -> str:
    """The measure that decides between variants."""
    return (*gate.must_rise, *gate.must_not_fall)[0]


def score(tried: Mapping[str, Any], store: ArtifactStore, measure: str) -> tuple[bool, float]:
    """Whether the variant passed, and its measure, the larger the better."""
    verdict = _read(store.get("verdict", tried["verdict"]["key"]), "verdict.json")
    report = _read(store.get("evaluation", tried["evaluation"]["key"]), "report.json")
    value = report["arms"][_ARM].get(measure)
    if value is None:  # no question that it could be measured on
        return bool(verdict["passed"]), -math.inf
    return bool(verdict["passed"]), -float(value) if measure in LOWER_IS_BETTER else float(value)


def _read(artifact: Artifact, name: str) -> dict[str, Any]:
    return json.loads(artifact.file(name).read_text(encoding="utf-8"))
