"""What the prompts of an artifact are like: its counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from jora_tasks.prompting.assembly import QUESTION
from jora_tasks.prompting.passages import Retrieved
from jora_tasks.prompting.raft import BUDGET, Selection


class Tally:
    """Counts rows as they are written."""

    def __init__(self) -> None:
        self._splits: Counter[str] = Counter()
        self._with_oracle: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._lengths: Counter[int] = Counter()
        self._positions: Counter[int] = Counter()
        self._oracles: Counter[int] = Counter()
        self._dropped: Counter[str] = Counter()
        self._training: Counter[str] = Counter()

    def add(
        self, row: Mapping[str, Any], question: Retrieved | None = None, selection: Selection | None = None
    ) -> None:
        """Count a row; that of a question with what it was made of."""
        length = len(row["input_ids"])
        self._lengths[length] += 1
        self._tokens["all"] += length
        if row["split"] == "train":
            self._tokens["train"] += length
            self._tokens["scored"] += length - row["prompt_length"]
        if row["kind"] != QUESTION:
            return
        self._splits[row["split"]] += 1
        self._with_oracle[row["split"]] += bool(row["oracle_ids"])
        self._dropped.update(each["reason"] for each in row["dropped"])
        if row["split"] == "train" and question is not None and selection is not None:
            self._count_training(row, question, selection)

    def _count_training(self, row: Mapping[str, Any], question: Retrieved, selection: Selection) -> None:
        self._positions.update(row["oracle_labels"])
        self._oracles[len(row["oracle_labels"])] += 1
        dropped = {each["chunk_id"] for each in row["dropped"] if each["reason"] == BUDGET}
        self._training.update(
            {
                "without_known_evidence": not question.spans,
                "of_several_documents": len({span.document_id for span in question.spans}) > 1,
                "drawn_without_oracle": selection.drawn_without,
                "abstaining": row["abstains"],
                "oracle_over_budget": any(
                    each.oracle and each.chunk_id in dropped for each in selection.passages
                ),
                "random_distractors": selection.random,
                "missing_distractors": selection.short,
            }
        )

    def counts(self) -> dict[str, Any]:
        """Figures for the manifest.

        ``questions`` and ``with_oracle`` by split; ``tokens``; ``length_histogram`` (up to a power of two →
        examples); of training prompts ``oracle_positions`` (label → oracles there), ``oracles_per_prompt``
        and ``training`` (what became of their sources); ``dropped`` (reason → chunks).
        """
        from retrieval.questions import SPLITS

        rows = sum(self._lengths.values())
        histogram: Counter[str] = Counter()
        for length in sorted(self._lengths):
            histogram[str(1 << (length - 1).bit_length())] += self._lengths[length]
        return {
            "questions": {split: self._splits[split] for split in SPLITS},
            "tokens": {
                "train": self._tokens["train"],
                "mean": round(self._tokens["all"] / rows, 1) if rows else 0.0,
                "max": max(self._lengths, default=0),
            },
            "scored_tokens": self._tokens["scored"],
            "length_histogram": dict(histogram),
            "with_oracle": {split: self._with_oracle[split] for split in SPLITS},
            "oracle_positions": _sorted(self._positions),
            "oracles_per_prompt": _sorted(self._oracles),
            "training": {name: int(count) for name, count in self._training.items() if count},
            "dropped": dict(sorted(self._dropped.items())),
        }


def _sorted(counter: Counter[int]) -> dict[str, int]:
    return {str(value): counter[value] for value in sorted(counter)}
