"""Who judges whether what an answer cites supports it: an NLI model that the spec names, or a proxy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jora_tasks.artifacts import ArtifactStore, Source
from jora_tasks.evaluation.entailment import NliModel
from jora_tasks.models import model_source, nli_folder
from jora_tasks.spec import RunSpec


@dataclass(frozen=True)
class NliJudge:
    """The model, and what it is as an input."""

    model: NliModel
    source: Source


def find_judge(spec: RunSpec, cite: bool, store: ArtifactStore) -> NliJudge | None:
    """The spec's NLI model with its weights unread; None where it names none, or answers do not cite.

    Raises:
      InputError: for one that is not there, or has no label of entailment.
    """
    name = spec.evaluation.nli_model
    if not (name and cite):
        return None
    folder = nli_folder(name, store.home)
    source = model_source(folder, name)
    return NliJudge(NliModel(folder, source.name, spec.evaluation.batch_size), source)


def support_told(judge: NliJudge | None, cite: bool) -> dict[str, Any] | None:
    """What report.json says of the judge; None where answers do not cite."""
    if not cite:
        return None
    return {"by": "nli_model", **judge.source.reference()} if judge else {"by": "words and known evidence"}
