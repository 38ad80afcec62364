"""The canary questions: a fixed set of their own on which no regression is let through.

They are searched for and put to the model as the held-out questions are, by the settings that the contexts
and prompts were made with.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_tasks.artifacts import Artifact, ArtifactStore, Source
from jora_tasks.digests import digest_file
from jora_tasks.evaluation.summary import (
    ADAPTER,
    CHAMPION,
    Prediction,
    Question,
    Said,
    Shown,
    score_arm,
)
from jora_tasks.prompting.conversation import served_instruction
from jora_tasks.prompting.packing import Packer
from jora_tasks.prompting.passages import found_passage
from jora_tasks.reading import read_text
from jora_tasks.registry import RegisteredAdapter
from jora_tasks.spec import PromptsConfig, RunSpec
from jora_tasks.stages.held_out import Asked

CANARY = "canary_with_contexts"


@dataclass(frozen=True)
class Canaries:
    """The questions, each its own group, and the file they are from."""

    questions: Sequence[Question]
    source: Source


def read_canaries(spec: RunSpec) -> Canaries | None:
    """Those of ``gate.canary_path``; None without one.

    Raises:
      InputError: for a file that cannot be read as questions; field or file and line are named.
    """
    if not spec.gate.canary_path:
        return None
    from retrieval.questions import read_questions

    path = Path(spec.gate.canary_path)
    read_text(path, f"gate.canary_path {path}")
    questions = [
        Question(each.id, each.question, each.answers, each.id, each.id) for each in read_questions(path)
    ]
    return Canaries(questions, Source("canary", path.name, digest_file(path)))


def ask_canaries(
    canaries: Canaries,
    spec: RunSpec,
    contexts: Artifact,
    config: PromptsConfig,
    base_folder: Path,
    store: ArtifactStore,
) -> list[Asked]:
    """Search the index that the contexts are of for each canary question, and write its prompt.

    Raises:
      InputError: if the index is gone, or a question does not fit the budget.
    """
    from jora_tasks.stages.searching import open_again
    from jora_tasks.trainer.tokenizer import load_tokenizer

    index = store.get("index", contexts.manifest["inputs"]["index"]["key"])
    searcher, weight, _ = open_again(spec, index, contexts, store)
    pools = searcher.pools([question.text for question in canaries.questions], [weight])
    packer = Packer(load_tokenizer(base_folder), config.token_budget)
    instruction = served_instruction(config)
    asked = []
    for question, pool in zip(canaries.questions, pools, strict=True):
        found = searcher.rank(pool, weight).found[: searcher.config.top_k]
        passages = [found_passage(each) for each in found]
        answer = question.answers[0]
        prompt = packer.pack(question.text, instruction, passages, functools.partial(_always, answer))
        ids, length = prompt.input_ids, prompt.prompt_length
        asked.append(Asked(question, Shown(), ids[:length], ids[length:]))
    return asked


def _always(answer: str, _: object) -> str:
    return answer


def score_canaries(
    canaries: Canaries,
    said: Mapping[str, Mapping[str, Said]],
    config: PromptsConfig,
    champion: RegisteredAdapter | None,
) -> tuple[dict[str, list[Prediction]], dict[str, Any]]:
    """The scores of each arm, and what report.json has of them.

    A question is right where the answer contains a known one, so that a base that answers in sentences is
    not held to the adapter's brevity.

    Args:
      said: arm → question id → its answer; the adapter's, and those of one opponent.
      champion: who the opponent is, unless that is the base.

    Returns:
      Arm → predictions; and ``digest`` of the file, ``questions``, ``against`` and its ``version``, how many
      each arm has ``right``, and the ids of the ``regressions``: right before, and not any more.
    """
    shown = Shown(sources=() if config.cite else None)
    asked = [(question, shown) for question in canaries.questions]
    rows = {arm: score_arm(arm, asked, each, config.abstention) for arm, each in said.items()}
    right = {
        arm: [row.question.id for row in each if row.scores["contains_answer"] == 1]
        for arm, each in rows.items()
    }
    opponent = next(arm for arm in rows if arm != ADAPTER)
    return rows, {
        "digest": canaries.source.digest,
        "questions": len(canaries.questions),
        "against": opponent,
        "version": champion.version if champion and opponent == CHAMPION else None,
        "right": {arm: len(each) for arm, each in right.items()},
        "regressions": [id_ for id_ in right[opponent] if id_ not in right[ADAPTER]],
    }
