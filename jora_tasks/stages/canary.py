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

from jora_tasks.artifacts import Artifact, ArtifactStore, Source, digest_file
from jora_tasks.evaluation.summary import Prediction, Question, Shown
from jora_tasks.prompting.conversation import served_instruction
from jora_tasks.prompting.packing import Packer
from jora_tasks.prompting.passages import found_passage
from jora_tasks.reading import read_text
from jora_tasks.spec import PromptsConfig, RunSpec
from jora_tasks.stages.held_out import Asked

CANARY = "canary_with_contexts"


@dataclass(frozen=True)
class Canaries:
    """The questions, each its own group, and the file they are from."""

    questions: Sequence[Question]
    source: Source

    def shown(self, cite: bool) -> list[tuple[Question, Shown]]:
        """What scoring is told of their prompts: whether answers were asked to cite, no more."""
        return [(question, Shown(sources=() if cite else None)) for question in self.questions]


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


def regressions(adapter: Sequence[Prediction], opponent: Sequence[Prediction]) -> list[str]:
    """Ids of the questions whose answer the opponent's text contains and the adapter's does not."""
    held = {row.question.id for row in adapter if row.scores["contains_answer"] == 1}
    return [
        row.question.id
        for row in opponent
        if row.scores["contains_answer"] == 1 and row.question.id not in held
    ]


def canary_report(
    canaries: Canaries,
    rows: Mapping[str, Sequence[Prediction]],
    adapter: str,
    opponent: str,
    version: int | None,
) -> dict[str, Any]:
    """For report.json: ``digest`` of the file, ``questions``, ``against`` and its ``version``, how many each
    arm has ``right``, and the ``regressions`` by id."""
    return {
        "digest": canaries.source.digest,
        "questions": len(canaries.questions),
        "against": opponent,
        "version": version,
        "right": {arm: sum(row.scores["contains_answer"] == 1 for row in each) for arm, each in rows.items()},
        "regressions": regressions(rows[adapter], rows[opponent]),
    }
