"""What supports an answer as a model of natural language inference judges it (ALCE, arXiv 2305.14627)."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from jora_tasks.errors import InputError
from jora_tasks.evaluation.citations import CitedAnswer, Supports, judged_together
from retrieval.cross_encoder import CrossEncoder

FIELD = "evaluation.nli_model"
ENTAILMENT = "entailment"


class NliModel:
    """A sequence classifier of (premise, hypothesis) with a label named entailment.

    Sources support an answer if entailment is the likeliest label of these sources, one below the other, and
    the question with the answer: ALCE judges short answers (those of QAMPARI) so, since they say nothing
    without their question. Sources longer than the model reads are cut at their end.
    """

    def __init__(self, folder: Path, name: str, batch_size: int) -> None:
        """Name a classifier.

        Raises:
          InputError: naming ``evaluation.nli_model``, if it has no such label.
        """
        self._encoder, self._batch_size = CrossEncoder(folder, f"{FIELD} {name}"), batch_size
        try:
            labels = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label") or {}
            named = {int(number): str(label) for number, label in labels.items()}
        except (OSError, ValueError, AttributeError):
            raise InputError(
                f"{FIELD} {name}: its config.json cannot be read; fetch it again or name another."
            ) from None
        entailing = [number for number, label in named.items() if label.lower() == ENTAILMENT]
        if len(entailing) != 1 or len(named) < 2:
            told = ", ".join(named.values()) or "no labels of its own"
            raise InputError(
                f"{FIELD} {name} has {told}, where one must be {ENTAILMENT} beside others; name a "
                "cross-encoder that was trained for natural language inference."
            )
        (self._entailing,) = entailing

    def __call__(self, answers: Sequence[CitedAnswer]) -> list[Supports]:
        """Whether sources together support an answer, for each of them, by its labels."""
        wanted = [{group: _pair(each, group) for group in judged_together(each.labels)} for each in answers]
        pairs = list(dict.fromkeys(pair for each in wanted for pair in each.values() if pair))
        entailed = dict(zip(pairs, self.entails(pairs), strict=True))

        def supports(known: dict[frozenset[int], tuple[str, str] | None]) -> Supports:
            return lambda labels: (pair := known[frozenset(labels)]) is not None and entailed[pair]

        return [supports(each) for each in wanted]

    def entails(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether each premise entails its hypothesis."""
        if not pairs:
            return []
        scores = self._encoder.figures(pairs, self._batch_size)
        return [bool(each) for each in scores.argmax(axis=1) == self._entailing]

    def open(self) -> None:
        """Read the weights now rather than at the first pair.

        Raises:
          InputError: if they cannot serve.
        """
        _ = self._encoder.model


def _pair(answer: CitedAnswer, labels: Collection[int]) -> tuple[str, str] | None:
    """Premise and hypothesis; None where nothing is cited that is there, or nothing said."""
    sources = [answer.sources[label - 1] for label in sorted(labels) if 1 <= label <= len(answer.sources)]
    if not sources or not answer.said.strip():
        return None
    return "\n".join(sources), f"{answer.question} {answer.said.strip()}"
