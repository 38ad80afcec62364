"""The answers of one arm, kept as an artifact of their own.

They are found again whenever the same weights meet the same prompts: the base's arms are generated once
for many adapters, and a champion's answers are those that it gave when it was the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jora_tasks.artifacts import Artifact, ArtifactStore, Input, Source, run_name
from jora_tasks.evaluation.answerer import Answerer
from jora_tasks.evaluation.summary import MEASURES, Prediction, Said
from jora_tasks.progress import Progress
from jora_tasks.spec import RunSpec
from jora_tasks.stages.held_out import Asked
from jora_tasks.trainer.lease import leased

VERSION = 2
PREDICTIONS = "predictions.parquet"


@dataclass(frozen=True)
class Arm:
    """Who answers: the base or an adapter over it, with or without contexts in the prompt."""

    name: str
    prompt: str  # what its prompts show
    adapter: Input | None = None
    folder: Callable[[], Path] | None = None  # where the adapter's files are


class Counter:
    """Counts answers over all arms."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._before = 0
        self._told = 0

    def within(self, arm: str, done: int) -> None:
        if self._before + done == self._told:  # the last batch told it already
            return
        self._told = self._before + done
        self._progress("evaluate", done=self._told, total=self._total, unit="answers", arm=arm)

    def waiting(self, what: str) -> None:
        self._progress("evaluate", waiting=what)

    def finish(self, arm: str, answers: int) -> None:
        self.within(arm, answers)
        self._before += answers


def answers_of(
    spec: RunSpec,
    base: Source,
    store: ArtifactStore,
    answerer: Answerer,
    counter: Counter,
    arm: Arm,
    inputs: Mapping[str, Input],
    asked: Callable[[], Sequence[Asked]],
) -> Artifact:
    """An arm's answers as a ``predictions`` artifact, generated only if they are not kept already.

    Args:
      inputs: what the prompts are made of.
      asked: makes them; called only if they are needed.
    """
    made_of: dict[str, Input] = {"base_model": base, **inputs}
    if arm.adapter is not None:
        made_of["adapter"] = arm.adapter
    settings = {
        "prompt": arm.prompt,
        **spec.model.weights(),
        "max_new_tokens": spec.evaluation.max_new_tokens,
        "max_questions": spec.evaluation.max_questions,
    }

    def write(folder: Path) -> dict[str, int]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        put = asked()
        with leased(store.home, run_name(spec.name), counter.waiting):
            answers = answerer.answer(
                [each.prompt for each in put],
                arm.folder() if arm.folder else None,
                lambda done, _: counter.within(arm.name, done),
                [each.known for each in put],
            )
        schema = pa.schema(
            [
                ("example_id", pa.string()),
                ("prediction", pa.string()),
                ("n_tokens", pa.int32()),
                ("answer_loss", pa.float64()),
            ]
        )
        rows = [
            {
                "example_id": each.question.id,
                "prediction": answer.text,
                "n_tokens": answer.tokens,
                "answer_loss": answer.loss,
            }
            for each, answer in zip(put, answers, strict=True)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / PREDICTIONS)
        return {
            "answers": len(rows),
            "tokens": sum(answer.tokens for answer in answers),
            "cut_off": sum(answer.tokens >= spec.evaluation.max_new_tokens for answer in answers),
        }

    artifact = store.build("predictions", version=VERSION, settings=settings, inputs=made_of, write=write)
    counter.finish(arm.name, artifact.counts["answers"])
    return artifact


def said_of(predictions: Artifact) -> dict[str, Said]:
    """Example id → what was said."""
    import pyarrow.parquet as pq

    rows = pq.read_table(predictions.file(PREDICTIONS)).to_pylist()
    return {row["example_id"]: Said(row["prediction"], row["answer_loss"]) for row in rows}


def write_predictions(rows: Mapping[str, Sequence[Prediction]], file: Path) -> None:
    """Each question's answer and scores, a row a question and arm: the truth that figures derive from."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.map_(pa.string(), pa.string())
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("example_id", "group", "cluster", "arm", "question")),
            ("slices", texts),
            ("answers", pa.list_(pa.string())),
            ("prediction", pa.string()),
            ("abstained", pa.bool_()),
            *((measure, pa.float64()) for measure in MEASURES),
            ("retrieval", pa.map_(pa.string(), pa.float64())),
        ]
    )
    scored = [row.row() for each in rows.values() for row in each]
    pq.write_table(pa.Table.from_pylist(scored, schema=schema), file)
