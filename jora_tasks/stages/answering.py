"""The answers of each arm, kept as artifacts of their own.

Prompts are joined with answers by the question's id, never by position. An arm is answered once for all
evaluations in which the same weights meet the same prompts: the base's arms are generated once
for many adapters, and a champion's answers are those that it gave when it was the adapter.

With ``evaluation.shards`` an arm's answers are put together from parts, which other processes may have made
before. What comes of it is the same artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_tasks.artifacts import Artifact, ArtifactStore, Input, Source, run_name
from jora_tasks.evaluation.answerer import Answerer
from jora_tasks.evaluation.generation import places_of_shard
from jora_tasks.evaluation.summary import MEASURES, Prediction, Question, Said
from jora_tasks.progress import Progress
from jora_tasks.spec import RunSpec
from jora_tasks.stages.held_out import Asked
from jora_tasks.trainer.lease import leased

VERSION = 2
KIND, PREDICTIONS = "predictions", "predictions.parquet"


@dataclass(frozen=True)
class Arm:
    """Who answers which questions: the base or an adapter over it, with or without contexts in the prompt.

    Attributes:
      prompt: what its prompts show.
      inputs: what its prompts are made of.
      asked: makes them, one a question; called only if they are needed.
      folder: where the adapter's files are.
    """

    name: str
    prompt: str
    questions: Sequence[Question]
    inputs: Mapping[str, Input]
    asked: Callable[[], Sequence[Asked]]
    adapter: Input | None = None
    folder: Callable[[], Path] | None = None


class Counter:
    """Counts answers over all arms, for whoever watches a stage."""

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self._progress = progress
        self._stage = stage
        self._total = total
        self._before = 0
        self._told = 0

    def within(self, arm: str, done: int) -> None:
        if self._before + done == self._told:  # the last batch told it already
            return
        self._told = self._before + done
        self._progress(self._stage, done=self._told, total=self._total, unit="answers", arm=arm)

    def waiting(self, what: str) -> None:
        self._progress(self._stage, waiting=what)

    def finish(self, arm: str, answers: int) -> None:
        self.within(arm, answers)
        self._before += answers


class Answering:
    """Makes ``predictions`` artifacts, each only if it is not kept already; the base is loaded once."""

    def __init__(
        self,
        spec: RunSpec,
        base: Source,
        base_folder: Path,
        store: ArtifactStore,
        counter: Counter,
        before_the_first: Callable[[], None],
    ) -> None:
        """Take the base and what is called before the first question is asked, if one is."""
        self._before_the_first = before_the_first
        self._spec, self._base, self._store, self._counter = spec, base, store, counter
        self._answerer = Answerer(base_folder, spec.model, spec.training.mesh, spec.evaluation, store.home)

    def whole(self, arm: Arm) -> Artifact:
        """All answers of an arm."""
        shards = self._spec.evaluation.shards

        def write(folder: Path) -> dict[str, int]:
            if shards == 1:
                return _write(self._answer(arm, arm.asked()), self._spec, folder)
            rows = {row["example_id"]: row for n in range(shards) for row in _rows(self.part(arm, n))}
            return _write([rows[question.id] for question in arm.questions], self._spec, folder)

        return self._build(arm, self._settings(arm), write)

    def part(self, arm: Arm, shard: int) -> Artifact:
        """The answers of one of ``evaluation.shards`` parts of an arm."""
        shards, (batch_size, multiple) = self._spec.evaluation.shards, _batch(self._spec)
        cut = {"shard": shard, "shards": shards, "batch_size": batch_size, "multiple": multiple}

        def write(folder: Path) -> dict[str, int]:
            asked = arm.asked()
            lengths = [len(each.prompt) for each in asked]
            places = sorted(places_of_shard(lengths, batch_size, multiple, shard, shards))
            return _write(self._answer(arm, [asked[place] for place in places]), self._spec, folder)

        return self._build(arm, {**self._settings(arm), "part": cut}, write)

    def has_whole(self, arm: Arm) -> bool:
        """Whether an arm's answers are kept already."""
        inputs, settings = self._inputs(arm), self._settings(arm)
        key = self._store.key(KIND, version=VERSION, settings=settings, inputs=inputs)
        return self._store.manifest(KIND, key) is not None

    def _inputs(self, arm: Arm) -> dict[str, Input]:
        adapter = {"adapter": arm.adapter} if arm.adapter is not None else {}
        return {"base_model": self._base, **arm.inputs, **adapter}

    def _settings(self, arm: Arm) -> dict[str, Any]:
        return {
            "prompt": arm.prompt,
            **self._spec.model.weights(),
            "max_new_tokens": self._spec.evaluation.max_new_tokens,
            "max_questions": self._spec.evaluation.max_questions,
        }

    def _build(
        self, arm: Arm, settings: Mapping[str, Any], write: Callable[[Path], dict[str, int]]
    ) -> Artifact:
        artifact = self._store.build(
            KIND, version=VERSION, settings=settings, inputs=self._inputs(arm), write=write
        )
        if artifact.reused:
            self._counter.finish(arm.name, artifact.counts["answers"])
        return artifact

    def _answer(self, arm: Arm, asked: Sequence[Asked]) -> list[dict[str, Any]]:
        if not asked:
            return []
        self._before_the_first()
        with (
            leased(self._store.home, run_name(self._spec.name), self._counter.waiting),
            self._store.meter.on_devices(),
        ):
            answers = self._answerer.answer(
                [each.prompt for each in asked],
                arm.folder() if arm.folder else None,
                lambda done, _: self._counter.within(arm.name, done),
                [each.known for each in asked],
            )
        self._counter.finish(arm.name, len(answers))
        return [
            {
                "example_id": each.question.id,
                "prediction": answer.text,
                "n_tokens": answer.tokens,
                "answer_loss": answer.loss,
            }
            for each, answer in zip(asked, answers, strict=True)
        ]


def size_of_part(spec: RunSpec, arm: Arm, shard: int) -> int:
    """How many of an arm's questions are in a part; it takes no prompts to tell."""
    return len(places_of_shard([0] * len(arm.questions), *_batch(spec), shard, spec.evaluation.shards))


def _batch(spec: RunSpec) -> tuple[int, int]:
    """Questions answered at once, and what their number is made a multiple of."""
    return spec.evaluation.batch_size, spec.training.mesh.data * spec.training.mesh.fsdp


def _write(rows: Sequence[Mapping[str, Any]], spec: RunSpec, folder: Path) -> dict[str, int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("example_id", pa.string()),
            ("prediction", pa.string()),
            ("n_tokens", pa.int32()),
            ("answer_loss", pa.float64()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / PREDICTIONS)
    return {
        "answers": len(rows),
        "tokens": sum(row["n_tokens"] for row in rows),
        "cut_off": sum(row["n_tokens"] >= spec.evaluation.max_new_tokens for row in rows),
    }


def _rows(predictions: Artifact) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(predictions.file(PREDICTIONS)).to_pylist()


def said_of(predictions: Artifact) -> dict[str, Said]:
    """Example id → what was said."""
    return {row["example_id"]: Said(row["prediction"], row["answer_loss"]) for row in _rows(predictions)}


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
