"""Evaluation: what the base, the adapter and the champion answer to the held-out questions.

The answers of each arm are an artifact of their own, found again whenever the same weights meet the
same prompts: the base's arms are generated once for many adapters, and a champion's answers are
those that it gave when it was the adapter.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_tasks.artifacts import Artifact, ArtifactStore, Input, Source, digest_bytes, run_name
from jora_tasks.errors import InputError
from jora_tasks.evaluation.answerer import Answerer
from jora_tasks.evaluation.generation import check_lengths
from jora_tasks.evaluation.summary import (
    ADAPTER,
    BASE,
    CHAMPION,
    CLOSED_BOOK,
    Prediction,
    Question,
    Resampling,
    compare,
    score_arm,
    summarise,
)
from jora_tasks.models import base_model_folder, model_source
from jora_tasks.progress import Progress
from jora_tasks.registry import BASE_MODEL, RegisteredAdapter, Registry
from jora_tasks.spec import RunSpec
from jora_tasks.trainer.config import read_config
from jora_tasks.trainer.lease import leased

VERSION = 3
PREDICTIONS_VERSION = 1

PREDICTIONS, REPORT, PAGE = "predictions.parquet", "report.json", "report.html"


@dataclass(frozen=True)
class _Arm:
    """Who answers: the base or an adapter over it, with or without contexts in the prompt."""

    name: str
    prompt: str  # column of the generation prompts
    adapter: Input | None = None
    folder: Callable[[], Path] | None = None  # where the adapter's files are


@dataclass(frozen=True)
class _Asked:
    """A test question and its generation prompts by column: token ids."""

    question: Question
    prompts: Mapping[str, list[int]]


def evaluate_adapter(
    spec: RunSpec, adapter: Artifact, prompts: Artifact, store: ArtifactStore, progress: Progress
) -> Artifact:
    """Ask the test questions of the base, the adapter and the champion, and compare them.

    The champion is that of the line ``spec.name``. Where the adapter is itself the champion, it is
    compared with the champion that it was registered against.

    Returns:
      An ``evaluation`` artifact: predictions.parquet (a row per question and arm), report.json and
      report.html.

    Raises:
      InputError: without a test question, if no registry answers, if the adapter was made for another
        base model, or if that has too few positions for the prompts and answers.
    """
    registry = Registry(store.home)
    rival = registry.rival(spec.name, adapter.digest)
    contexts = _contexts_of(prompts, store)
    asked = _test_questions(prompts, contexts, spec.evaluation.max_questions)
    base_folder = base_model_folder(spec.model.base, store.home)
    base = model_source(base_folder, spec.model.base)
    _check_base(adapter, base)
    check_lengths(
        [prompt for each in asked for prompt in each.prompts.values()],
        spec.evaluation.max_new_tokens,
        read_config(base_folder),
    )
    obstacle = _obstacle(rival, base)

    arms = [
        _Arm(CLOSED_BOOK, _CLOSED),
        _Arm(BASE, _OPEN),
        _Arm(ADAPTER, _OPEN, adapter, lambda: adapter.path),
    ]
    answered: dict[str, Artifact] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if rival is not None and obstacle is None:
            source = Source("adapter", f"{rival.name} version {rival.version}", rival.digest)
            champion = rival
            arms.append(
                _Arm(
                    CHAMPION, _OPEN, source, lambda: _fetch_adapter(champion, store, registry, Path(scratch))
                )
            )
        answerer = Answerer(base_folder, spec.model, spec.training.mesh, spec.evaluation, store.home)
        counter = _Counter(progress, len(arms) * len(asked))
        for arm in arms:
            answered[arm.name] = _answers(spec, arm, base, prompts, asked, store, answerer, counter)

    settings = {
        "bootstrap_samples": spec.evaluation.bootstrap_samples,
        "confidence": spec.evaluation.confidence,
        "seed": spec.evaluation.seed,
        "champion": {"version": rival.version, "digest": rival.digest} if rival else None,
    }
    inputs: dict[str, Input] = {"adapter": adapter, "prompts": prompts, "base_model": base, **answered}
    if contexts is not None:
        inputs["contexts"] = contexts

    def write(folder: Path) -> dict[str, Any]:
        rows = {
            name: score_arm(name, [each.question for each in asked], _texts(artifact))
            for name, artifact in answered.items()
        }
        report = _report(spec, adapter, base, rows, rival, obstacle, contexts)
        _write(folder, rows, report, adapter, prompts)
        return {
            "questions": len(asked),
            "groups": report["groups"],
            "exact_match": {name: report["arms"][name]["exact_match"] for name in rows},
        }

    return store.build("evaluation", version=VERSION, settings=settings, inputs=inputs, write=write)


# Where the generation prompts come from.
_OPEN, _CLOSED = "with_contexts", "closed_book"


def _test_questions(prompts: Artifact, contexts: Artifact | None, most: int) -> list[_Asked]:
    """The test questions asked: the first ``most`` by id digest, so that a smaller number is a subset."""
    import pyarrow.parquet as pq

    cite = prompts.manifest["settings"].get("cite", False)
    columns = ["example_id", "question", "answers", "input_ids", "prompt_length", "closed_book_ids"]
    table = pq.read_table(
        prompts.file("prompts.parquet"),
        columns=[*columns, "oracle_labels"] if cite else columns,
        filters=[("split", "=", "test")],
    )
    if table.num_rows == 0:
        raise InputError(
            "There is no test question to compare on; give questions with `split`: test, "
            "or raise questions.test_fraction."
        )
    groups = _groups(contexts)
    asked = [
        _Asked(
            Question(
                row["example_id"],
                row["question"],
                tuple(row["answers"]),
                groups.get(row["example_id"], row["example_id"]),
                tuple(row["oracle_labels"]) if cite else None,
            ),
            {_OPEN: row["input_ids"][: row["prompt_length"]], _CLOSED: row["closed_book_ids"]},
        )
        for row in table.to_pylist()
    ]
    return sorted(asked, key=lambda each: digest_bytes(each.question.id.encode()))[:most]


def _groups(contexts: Artifact | None) -> dict[str, str]:
    """Question id → group, where the contexts are still there to say."""
    if contexts is None:
        return {}
    import pyarrow.parquet as pq

    table = pq.read_table(contexts.file("contexts.parquet"), columns=["question_id", "group"])
    return dict(zip(table["question_id"].to_pylist(), table["group"].to_pylist(), strict=True))


def _contexts_of(prompts: Artifact, store: ArtifactStore) -> Artifact | None:
    """The contexts that the prompts were made from, if they are still there."""
    for reference in prompts.manifest["inputs"].values():
        if reference["kind"] == "contexts":
            try:
                return store.get("contexts", reference["key"])
            except InputError:
                return None
    return None


def _check_base(adapter: Artifact, base: Source) -> None:
    for reference in adapter.manifest["inputs"].values():
        if reference["kind"] == base.kind and reference["digest"] != base.digest:
            raise InputError(
                f"Adapter {adapter.key} was trained over {reference['name']} ({reference['digest'][:19]}), "
                f"not over {base.name} ({base.digest[:19]}); set model.base to the model it was trained over."
            )


def _obstacle(rival: RegisteredAdapter | None, base: Source) -> str | None:
    """Why the champion cannot answer the same prompts, or None."""
    if rival is None or rival.tags.get(BASE_MODEL, base.digest) == base.digest:
        return None
    return "it was trained over another base model"


def _fetch_adapter(
    registered: RegisteredAdapter, store: ArtifactStore, registry: Registry, scratch: Path
) -> Path:
    """The registered adapter's files: the home's artifact if it is still there, else the registry's."""
    try:
        artifact = store.get("adapter", registered.key)
        if artifact.digest == registered.digest:
            return artifact.path
    except InputError:
        pass
    return registry.download(registered, scratch)


class _Counter:
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


def _answers(
    spec: RunSpec,
    arm: _Arm,
    base: Source,
    prompts: Artifact,
    asked: Sequence[_Asked],
    store: ArtifactStore,
    answerer: Answerer,
    counter: _Counter,
) -> Artifact:
    """An arm's answers, generated only if they are not kept already."""
    inputs: dict[str, Input] = {"base_model": base, "prompts": prompts}
    if arm.adapter is not None:
        inputs["adapter"] = arm.adapter
    settings = {
        "prompt": arm.prompt,
        **spec.model.weights(),
        "max_new_tokens": spec.evaluation.max_new_tokens,
        "max_questions": spec.evaluation.max_questions,
    }

    def write(folder: Path) -> dict[str, int]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with leased(store.home, run_name(spec.name), counter.waiting):
            answers = answerer.answer(
                [each.prompts[arm.prompt] for each in asked],
                arm.folder() if arm.folder else None,
                lambda done, _: counter.within(arm.name, done),
            )
        schema = pa.schema(
            [("example_id", pa.string()), ("prediction", pa.string()), ("n_tokens", pa.int32())]
        )
        rows = [
            {"example_id": each.question.id, "prediction": text, "n_tokens": tokens}
            for each, (text, tokens) in zip(asked, answers, strict=True)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / PREDICTIONS)
        return {
            "answers": len(rows),
            "tokens": sum(tokens for _, tokens in answers),
            "cut_off": sum(tokens >= spec.evaluation.max_new_tokens for _, tokens in answers),
        }

    artifact = store.build(
        "predictions", version=PREDICTIONS_VERSION, settings=settings, inputs=inputs, write=write
    )
    counter.finish(arm.name, len(asked))
    return artifact


def _texts(predictions: Artifact) -> dict[str, str]:
    """Example id → answer."""
    import pyarrow.parquet as pq

    table = pq.read_table(predictions.file(PREDICTIONS), columns=["example_id", "prediction"])
    return dict(zip(table["example_id"].to_pylist(), table["prediction"].to_pylist(), strict=True))


def _report(
    spec: RunSpec,
    adapter: Artifact,
    base: Source,
    rows: Mapping[str, list[Prediction]],
    rival: RegisteredAdapter | None,
    obstacle: str | None,
    contexts: Artifact | None,
) -> dict[str, Any]:
    settings = spec.evaluation
    resampling = Resampling(settings.bootstrap_samples, settings.confidence, settings.seed)
    champion = None
    if rival is not None:
        champion = {
            "version": rival.version,
            "digest": rival.digest,
            "reason": obstacle,
            "difference": compare(rows[ADAPTER], rows[CHAMPION], resampling) if CHAMPION in rows else None,
        }
    return {
        "adapter": {"key": adapter.key, "digest": adapter.digest},
        "base_model": base.reference(),
        "questions": len(rows[ADAPTER]),
        "groups": len({row.group for row in rows[ADAPTER]}),
        "confidence": settings.confidence,
        "bootstrap_samples": settings.bootstrap_samples,
        "arms": {name: summarise(scored, resampling) for name, scored in rows.items()},
        "difference": compare(rows[ADAPTER], rows[BASE], resampling),
        "champion": champion,
        "retrieval": _retrieval(contexts.counts if contexts else {}),
    }


def _retrieval(counts: Mapping[str, Any]) -> dict[str, Any]:
    """How the contexts were found, and how good they are for the test questions, as far as it is known."""
    return {
        "recall_at_k": counts.get("recall_at_k"),
        "measures": counts.get("measures", {}).get("test"),
        "retriever": counts.get("retriever"),
    }


def _write(
    folder: Path,
    rows: Mapping[str, list[Prediction]],
    report: Mapping[str, Any],
    adapter: Artifact,
    prompts: Artifact,
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from jora_tasks.evaluation.report import read_history, read_lengths, render_report

    schema = pa.schema(
        [
            ("example_id", pa.string()),
            ("group", pa.string()),
            ("arm", pa.string()),
            ("question", pa.string()),
            ("answers", pa.list_(pa.string())),
            ("prediction", pa.string()),
            ("exact_match", pa.float64()),
            ("f1", pa.float64()),
            ("citation_precision", pa.float64()),
            ("citation_recall", pa.float64()),
        ]
    )
    scored = [row.row() for arm in rows.values() for row in arm]
    pq.write_table(pa.Table.from_pylist(scored, schema=schema), folder / PREDICTIONS)
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    page = render_report(
        report,
        rows,
        history=read_history(adapter.file("metrics.jsonl")),
        lengths=read_lengths(prompts.file("prompts.parquet")),
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
