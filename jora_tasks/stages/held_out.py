"""The held-out questions of an evaluation, and the prompts that each arm answers them from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.digests import digest_bytes
from jora_tasks.errors import InputError
from jora_tasks.evaluation.clusters import By, cluster_questions
from jora_tasks.evaluation.summary import Question, Shown
from jora_tasks.prompting.conversation import cited, served_instruction, source_messages
from jora_tasks.prompting.packing import Packer, Prompt
from jora_tasks.prompting.passages import Library, Retrieved, missing_oracles, read_question
from jora_tasks.spec import PromptsConfig, RunSpec
from jora_tasks.stages.slicing import slice_names, slice_values

if TYPE_CHECKING:
    from jora_tasks.trainer.tokenizer import ChatTokenizer

# What a prompt shows beside the question.
OPEN, CLOSED, GOLD = "with_contexts", "closed_book", "gold_context"


@dataclass(frozen=True)
class Asked:
    """A question as it is put to an arm.

    Attributes:
      prompt: token ids up to where the answer begins.
      known: token ids of the first known answer and its end.
    """

    question: Question
    shown: Shown
    prompt: list[int]
    known: list[int]


@dataclass(frozen=True)
class HeldOut:
    """The test questions asked.

    Attributes:
      asked: `OPEN`, `CLOSED` or `GOLD` → the questions that there is such a prompt for, in one order.
      clustered_by: how many questions were put into their cluster by document, group or question.
      without_gold: how many have no gold context, and why; None if each has.
      scored: score of each chunk retrieved for a question with evidence, and whether it holds some.
    """

    asked: Mapping[str, Sequence[Asked]]
    clustered_by: Mapping[str, int]
    without_gold: Mapping[str, Any] | None
    scored: Sequence[tuple[float, bool]] = ()

    @property
    def questions(self) -> list[Question]:
        return [each.question for each in self.asked[OPEN]]


def read_held_out(
    prompts: Artifact,
    contexts: Artifact | None,
    spec: RunSpec,
    base_folder: Path,
    store: ArtifactStore,
) -> HeldOut:
    """The test questions: the first ``max_questions`` by id digest, so that a smaller number is a subset.

    Args:
      contexts: that the prompts were made from; None if they are gone: then a question is its own cluster,
        and there is no gold context.
      base_folder: of the model whose tokens the prompts are.

    Raises:
      InputError: if there is none, or for slices that are not known.
    """
    rows = sorted(_rows(prompts), key=lambda row: digest_bytes(row["example_id"].encode()))
    rows = rows[: spec.evaluation.max_questions]
    retrieved = _retrieved(contexts)
    slices = _slices(rows, retrieved, contexts, spec, store)
    questions, clustered_by = _questions(rows, retrieved, slices, spec.evaluation.cluster_by)
    config = prompts_config(prompts)
    texts = _Texts(retrieved, config)
    closed = _closed_answers(rows, config, base_folder)
    asked = {
        OPEN: [
            Asked(question, texts.shown(row), *_split(row["input_ids"], row["prompt_length"]))
            for question, row in zip(questions, rows, strict=True)
        ],
        CLOSED: [
            Asked(question, Shown(), row["closed_book_ids"], known)
            for question, row, known in zip(questions, rows, closed, strict=True)
        ],
    }
    asked[GOLD], without_gold = _gold(questions, retrieved, contexts, config, base_folder, store)
    scored = [
        (each.score, each.oracle)
        for question in questions
        if question.id in retrieved and retrieved[question.id].question.spans
        for each in retrieved[question.id].question.contexts
        if each.score is not None
    ]
    return HeldOut(asked, clustered_by, without_gold, scored)


def prompts_config(prompts: Artifact) -> PromptsConfig:
    """The settings that the prompts were made with; what they do not name has its default."""
    return PromptsConfig().model_copy(update=dict(prompts.manifest["settings"]))


def contexts_of(prompts: Artifact, store: ArtifactStore) -> Artifact | None:
    """The contexts that the prompts were made from, if they are still there."""
    for reference in prompts.manifest["inputs"].values():
        if reference["kind"] == "contexts":
            try:
                return store.get("contexts", reference["key"])
            except InputError:
                return None
    return None


@dataclass(frozen=True)
class _Found:
    """A row of the contexts: its group, its passages, and how well the evidence was found."""

    group: str
    question: Retrieved
    measures: Mapping[str, float]


def _rows(prompts: Artifact) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    columns = ["example_id", "question", "answers", "input_ids", "prompt_length", "closed_book_ids"]
    table = pq.read_table(
        prompts.file("prompts.parquet"),
        columns=[*columns, "oracle_labels", "context_ids"],
        filters=[("split", "=", "test")],
    )
    if table.num_rows == 0:
        raise InputError(
            "There is no test question to compare on; give questions with `split`: test, "
            "or raise questions.test_fraction."
        )
    return table.to_pylist()


def _retrieved(contexts: Artifact | None) -> dict[str, _Found]:
    """Test question's id → what was retrieved for it; empty without contexts."""
    if contexts is None:
        return {}
    import pyarrow.parquet as pq

    table = pq.read_table(contexts.file("contexts.parquet"), filters=[("split", "=", "test")])
    return {
        row["question_id"]: _Found(row["group"], read_question(row), dict(row["measures"] or ()))
        for row in table.to_pylist()
    }


def _slices(
    rows: Sequence[Mapping[str, Any]],
    retrieved: Mapping[str, _Found],
    contexts: Artifact | None,
    spec: RunSpec,
    store: ArtifactStore,
) -> dict[str, dict[str, str]]:
    if not slice_names(spec):
        return {}
    if contexts is None:
        raise InputError(
            "evaluation.slices and gate.slices need the contexts that the prompts were made from, but these "
            "are gone; run `jora contexts` again."
        )
    index = store.get("index", contexts.manifest["inputs"]["index"]["key"])
    documents = {id_: [span.document_id for span in found.question.spans] for id_, found in retrieved.items()}
    digest = contexts.manifest["inputs"]["questions"]["digest"]
    return slice_values(spec, index, store, documents, digest)


def _questions(
    rows: Sequence[Mapping[str, Any]],
    retrieved: Mapping[str, _Found],
    slices: Mapping[str, Mapping[str, str]],
    cluster_by: By,
) -> tuple[list[Question], dict[str, int]]:
    ids = [row["example_id"] for row in rows]
    found = [retrieved.get(id_) for id_ in ids]
    groups = [each.group if each else id_ for id_, each in zip(ids, found, strict=True)]
    documents = [{span.document_id for span in each.question.spans} if each else set() for each in found]
    clusters, clustered_by = cluster_questions(ids, groups, documents, cluster_by)
    questions = [
        Question(
            row["example_id"],
            row["question"],
            tuple(row["answers"]),
            group,
            cluster,
            slices=slices.get(row["example_id"], {}),
            retrieval=each.measures if each else {},
        )
        for row, group, cluster, each in zip(rows, groups, clusters, found, strict=True)
    ]
    return questions, clustered_by


def _split(ids: list[int], length: int) -> tuple[list[int], list[int]]:
    return ids[:length], ids[length:]


def _closed_answers(
    rows: Sequence[Mapping[str, Any]], config: PromptsConfig, base_folder: Path
) -> list[list[int]]:
    """The known answers as they are said without sources: without citations."""
    if not config.cite:
        return [row["input_ids"][row["prompt_length"] :] for row in rows]
    from jora_tasks.trainer.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(base_folder)
    answers = []
    for row in rows:
        messages = source_messages(config.closed_book_instruction, [], row["question"])
        messages.append({"role": "assistant", "content": row["answers"][0]})
        answers.append(_split(*tokenizer.render(messages))[1])
    return answers


class _Texts:
    """What the prompts of the retrieved sources showed."""

    def __init__(self, retrieved: Mapping[str, _Found], config: PromptsConfig) -> None:
        self._retrieved = retrieved
        self._cite = config.cite

    def shown(self, row: Mapping[str, Any]) -> Shown:
        found = self._retrieved.get(row["example_id"])
        if found is None:
            return Shown()
        passages = {each.chunk_id: each for each in found.question.contexts}
        placed = [passages[chunk_id] for chunk_id in row["context_ids"]]
        evidence = tuple(row["oracle_labels"]) if found.question.spans else None
        sources = tuple(f"{each.heading}\n{each.text}" for each in placed) if self._cite else None
        return Shown(evidence, sources)


def _gold(
    questions: Sequence[Question],
    retrieved: Mapping[str, _Found],
    contexts: Artifact | None,
    config: PromptsConfig,
    base_folder: Path,
    store: ArtifactStore,
) -> tuple[list[Asked], dict[str, Any] | None]:
    """The questions with the chunks that hold their evidence as the only sources, a chunk for each piece."""

    def without(number: int, reason: str) -> dict[str, Any] | None:
        return {"questions": number, "reason": reason} if number else None

    if contexts is None:
        return [], without(len(questions), "the contexts are gone")
    known = [question for question in questions if retrieved[question.id].question.spans]
    try:
        index = store.get("index", contexts.manifest["inputs"]["index"]["key"]) if known else None
    except InputError:
        return [], without(len(questions), "the index is gone")
    if index is None:
        return [], without(len(questions), "no evidence is known")
    from jora_tasks.trainer.tokenizer import load_tokenizer
    from retrieval.chunk_table import ChunkTable
    from retrieval.index import CHUNKS

    chunks = ChunkTable(index.file(CHUNKS))
    library = Library(chunks, chunks.columns("document_id")["document_id"])
    tokenizer = load_tokenizer(base_folder)
    asked = [
        Asked(
            question,
            Shown(
                tuple(range(1, len(prompt.passages) + 1)),
                tuple(f"{each.heading}\n{each.text}" for each in prompt.passages) if config.cite else None,
            ),
            *_split(prompt.input_ids, prompt.prompt_length),
        )
        for question in known
        if (prompt := _gold_prompt(retrieved[question.id].question, library, config, tokenizer)).passages
    ]
    return asked, without(len(questions) - len(asked), "no evidence is known, or none of it fits the budget")


def _gold_prompt(
    question: Retrieved, library: Library, config: PromptsConfig, tokenizer: ChatTokenizer
) -> Prompt:
    def answering(placed: Sequence[Any]) -> str:
        labels = range(1, len(placed) + 1) if config.cite else ()
        return cited(question.answers[0], list(labels))

    passages = missing_oracles(question.spans, [], library)
    packer = Packer(tokenizer, config.token_budget)
    return packer.pack(question.question, served_instruction(config), passages, answering)
