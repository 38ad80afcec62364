"""Contexts → prompts: conversations in the base model's tokens, their answers marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_tasks.artifacts import Artifact, ArtifactStore, Input, Source
from jora_tasks.digests import digest_file, digest_json
from jora_tasks.errors import InputError
from jora_tasks.models import base_model_folder, shown_name
from jora_tasks.progress import Progress
from jora_tasks.prompting.assembly import Assembler, Row, prompts_schema
from jora_tasks.prompting.mix import asked_of, draw_instructions, instruction_id, mixed_in
from jora_tasks.prompting.overlap import Asked, overlaps_of
from jora_tasks.prompting.passages import Library, Retrieved, read_question
from jora_tasks.prompting.tally import Tally
from jora_tasks.spec import RunSpec
from jora_tasks.stages.contexts import CONTEXTS
from jora_tasks.tables import TableWriter

if TYPE_CHECKING:
    from jora_tasks.trainer.data import Conversation

VERSION = 3
PROMPTS, OVERLAP = "prompts.parquet", "overlap.jsonl"
_REPORT_EVERY = 25
_ROWS_AT_ONCE = 64
_BYTES_A_TOKEN = 8  # about, in a row: its id and its characters


def assemble_prompts(spec: RunSpec, contexts: Artifact, store: ArtifactStore, progress: Progress) -> Artifact:
    """Write each question, its sources and its answer as the base model's chat, within the budget.

    The artifact holds ``prompts.parquet``, one row a question, in the order of the contexts, then by option
    general instructions; and, where training questions overlap held-out ones, ``overlap.jsonl``. How
    sources are chosen: `jora_tasks.prompting.assembly.Assembler.question`.

    Raises:
      InputError: if a question does not fit the budget without any source, or its answer has no
        token (the question is named), if all training questions overlap held-out ones, or the file of
        general instructions cannot be used.
    """
    from jora_tasks.trainer.tokenizer import load_tokenizer, tokenizer_files

    config = spec.prompts
    folder = base_model_folder(spec.model.base, store.home)
    tokenizer = load_tokenizer(folder)
    files = {file.name: digest_file(file) for file in tokenizer_files(folder)}
    identity = {"files": files, "template": tokenizer.template, "eos": sorted(tokenizer.eos_ids)}
    source = Source("tokenizer", shown_name(folder, spec.model.base), digest_json(identity))
    inputs: dict[str, Input] = {"contexts": contexts, "tokenizer": source}
    general = _general(spec)
    if general:
        path = Path(config.mix_path)
        inputs["instructions"] = Source("instructions", path.name, digest_file(path))

    def write(target: Path) -> Mapping[str, Any]:
        from retrieval.chunk_table import ChunkTable
        from retrieval.index import CHUNKS

        index = store.get("index", contexts.manifest["inputs"]["index"]["key"])
        chunks = ChunkTable(index.file(CHUNKS))
        library = Library(chunks, chunks.columns("document_id")["document_id"])
        assembler = Assembler(config, tokenizer, library)
        asked = _asked(contexts.file(CONTEXTS))
        overlaps = overlaps_of(asked, [asked_of(each) for each in general])
        left_out = overlaps.to_remove() if config.remove_overlap else frozenset()
        training = sum(each.id not in left_out for each in asked["train"])
        if asked["train"] and not training:
            raise InputError(
                f"All {len(asked['train'])} training questions overlap dev or test questions, so that none "
                "is left to train on; give others, or set prompts.remove_overlap to false."
            )
        mixed = draw_instructions(
            [each for each in general if instruction_id(each) not in left_out],
            mixed_in(training, config.mix_fraction),
            config.seed,
        )
        questions = sum(map(len, asked.values())) - len(asked["train"]) + training
        total, tally = questions + len(mixed), Tally()

        def rows() -> Iterator[Row]:
            for question in _questions(contexts.file(CONTEXTS)):
                if question.id not in left_out:
                    row, selection = assembler.question(question)
                    tally.add(row, question, selection)
                    yield row
            for conversation in mixed:
                drawn = assembler.instruction(conversation)
                if drawn is not None:
                    tally.add(drawn)
                    yield drawn

        written = 0
        with TableWriter(target / PROMPTS, prompts_schema()) as table:
            for written, row in enumerate(rows(), start=1):
                table.add(row, _BYTES_A_TOKEN * len(row["input_ids"]))
                if written % _REPORT_EVERY == 0:
                    progress("prompts", done=written, total=total, unit="prompts")
        progress("prompts", done=total, total=total, unit="prompts")
        if lines := overlaps.lines():
            (target / OVERLAP).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        counts = tally.counts()
        counts["overlap"] = {**overlaps.counts(), "left_out": len(asked["train"]) - training}
        if general:
            counts["instructions"] = {
                "mixed_in": written - questions,
                "over_the_budget": total - written,
                "fewer_than_asked": mixed_in(training, config.mix_fraction) - len(mixed),
            }
        return counts

    return store.build("prompts", version=VERSION, settings=config.making(), inputs=inputs, write=write)


def check_inputs(spec: RunSpec, store: ArtifactStore) -> None:
    """Refuse a base model or general instructions that `assemble_prompts` would, before any stage."""
    base_model_folder(spec.model.base, store.home)
    _general(spec)


def _general(spec: RunSpec) -> list[Conversation]:
    """The general instructions that are mixed in, none by default."""
    from jora_tasks.trainer.data import read_conversations

    return read_conversations(spec.prompts.mix_path) if spec.prompts.mix_fraction else []


def _asked(file: Path) -> dict[str, list[Asked]]:
    """Split → what of its questions may overlap."""
    import pyarrow.parquet as pq

    from retrieval.evidence import Span
    from retrieval.questions import SPLITS

    columns = ["question_id", "question", "answers", "split", "evidence"]
    asked: dict[str, list[Asked]] = {split: [] for split in SPLITS}
    for row in pq.read_table(file, columns=columns).to_pylist():
        spans = tuple(Span(**span) for span in row["evidence"])
        asked[row["split"]].append(Asked(row["question_id"], row["question"], tuple(row["answers"]), spans))
    return asked


def _questions(file: Path) -> Iterator[Retrieved]:
    """The questions with their contexts, a few in memory at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches(_ROWS_AT_ONCE):
            yield from map(read_question, batch.to_pylist())
