"""Contexts → prompts: conversations in the base model's tokens, their answers marked."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_tasks.artifacts import Artifact, ArtifactStore, Source, digest_file, digest_json
from jora_tasks.errors import InputError
from jora_tasks.models import base_model_folder, shown_name
from jora_tasks.progress import Progress
from jora_tasks.spec import PromptsConfig, RunSpec
from jora_tasks.stages.contexts import CONTEXTS

if TYPE_CHECKING:
    from jora_tasks.trainer.tokenizer import ChatTokenizer, Message
    from retrieval.chunking import Chunk

VERSION = 1
PROMPTS = "prompts.parquet"
_REPORT_EVERY = 25


@dataclass(frozen=True)
class Passage:
    """A source for a prompt; ``oracle`` tells whether it holds some of the evidence."""

    chunk_id: str
    document_id: str
    heading: str
    text: str
    oracle: bool


@dataclass(frozen=True)
class Prompt:
    """A conversation in tokens; ``input_ids[prompt_length:]`` is the answer with its end."""

    messages: list[Message]
    input_ids: list[int]
    prompt_length: int
    passages: list[Passage]
    dropped: list[Passage]


def assemble_prompts(spec: RunSpec, contexts: Artifact, store: ArtifactStore, progress: Progress) -> Artifact:
    """Write each question, its sources and its answer as the base model's chat, within the budget.

    The artifact holds ``prompts.parquet``, one row a question, in the order of the contexts.

    Training prompts get the chunk with the evidence where retrieval missed it (and
    ``prompts.add_missing_oracle`` is on), and their sources in a random order that the seed and the
    question's id decide, so that an answer's place teaches nothing. Dev and test prompts have what
    was retrieved, by rank.

    Raises:
      InputError: if a question does not fit the budget without any source, or its answer has no
        token; the question is named.
    """
    from jora_tasks.trainer.tokenizer import load_tokenizer, tokenizer_files

    folder = base_model_folder(spec.model.base, store.home)
    tokenizer = load_tokenizer(folder)
    files = {file.name: digest_file(file) for file in tokenizer_files(folder)}
    identity = {"files": files, "template": tokenizer.template, "eos": sorted(tokenizer.eos_ids)}
    source = Source("tokenizer", shown_name(folder, spec.model.base), digest_json(identity))

    def write(target: Path) -> Mapping[str, Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from retrieval.evidence import by_document
        from retrieval.index import read_chunks

        index = store.get("index", contexts.manifest["inputs"]["index"]["key"])
        chunks_of = by_document(read_chunks(index.path))
        questions = pq.read_table(contexts.file(CONTEXTS)).to_pylist()
        rows = []
        for number, question in enumerate(questions, start=1):
            rows.append(_row(question, spec.prompts, tokenizer, chunks_of))
            if number % _REPORT_EVERY == 0 or number == len(questions):
                progress("prompts", done=number, total=len(questions), unit="prompts")
        pq.write_table(pa.Table.from_pylist(rows, schema=prompts_schema()), target / PROMPTS)
        return _counts(rows)

    return store.build(
        "prompts",
        version=VERSION,
        settings=spec.prompts.model_dump(mode="json"),
        inputs={"contexts": contexts, "tokenizer": source},
        write=write,
    )


def prompts_schema() -> Any:
    """Columns of ``prompts.parquet``."""
    import pyarrow as pa

    texts, ids = pa.list_(pa.string()), pa.list_(pa.int32())
    return pa.schema(
        [
            ("example_id", pa.string()),
            ("split", pa.string()),
            ("question", pa.string()),
            ("answers", texts),
            ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
            ("input_ids", ids),
            ("prompt_length", pa.int32()),
            ("closed_book_ids", ids),
            ("context_ids", texts),
            ("document_ids", texts),
            ("oracle_ids", texts),
            ("distractor_ids", texts),
            ("dropped_ids", texts),
            ("dropped_reason", pa.string()),
        ]
    )


def source_messages(instruction: str, passages: Sequence[Passage], question: str) -> list[Message]:
    """The system and user messages: the instruction, then numbered sources and the question.

    A source looks like ``[1] (Title › Heading)``, then its text on the next lines.
    """
    sources = [
        f"[{number}] ({passage.heading})\n{passage.text}\n\n"
        for number, passage in enumerate(passages, start=1)
    ]
    return [
        {"role": "system", "content": instruction},
        {"role": "user", "content": "".join([*sources, f"Question: {question}"])},
    ]


def pack(
    passages: Sequence[Passage], question: str, answer: str, config: PromptsConfig, tokenizer: ChatTokenizer
) -> Prompt:
    """Put whole passages into a prompt, in their order, each if it still fits the budget.

    Raises:
      InputError: if the question does not fit without any passage, or the answer has no token.
    """

    def render(chosen: Sequence[Passage]) -> Prompt:
        messages = source_messages(config.instruction, chosen, question)
        messages.append({"role": "assistant", "content": answer})
        ids, length = tokenizer.render(messages)
        return Prompt(messages, ids, length, list(chosen), [])

    prompt = render([])
    if not tokenizer.encode(answer):
        raise InputError(
            f"The answer {answer!r} to {question!r} has no token in the base model's tokenizer; "
            "give an answer it can write."
        )
    if len(prompt.input_ids) > config.token_budget:
        raise InputError(
            f"The question {_shortened(question)!r} with its answer takes {len(prompt.input_ids)} tokens "
            f"without any source; raise prompts.token_budget ({config.token_budget}) or shorten it."
        )
    dropped = []
    for passage in passages:
        longer = render([*prompt.passages, passage])
        if len(longer.input_ids) <= config.token_budget:
            prompt = longer
        else:
            dropped.append(passage)
    return Prompt(prompt.messages, prompt.input_ids, prompt.prompt_length, prompt.passages, dropped)


def _row(
    row: Mapping[str, Any], config: PromptsConfig, tokenizer: ChatTokenizer, chunks_of: dict[str, list[Chunk]]
) -> dict[str, Any]:
    from retrieval.evidence import Span, is_relevant, relevant_chunks

    spans = [Span(**span) for span in row["evidence"]]
    passages = [
        Passage(
            each["chunk_id"],
            each["document_id"],
            each["heading"],
            each["text"],
            is_relevant(each["document_id"], each["start"], each["end"], spans),
        )
        for each in sorted(row["contexts"], key=lambda each: each["rank"])
    ]
    question, answer = row["question"], row["answers"][0]
    if row["split"] == "train":
        if config.add_missing_oracle and not any(passage.oracle for passage in passages):
            missing = [
                Passage(chunk.id, chunk.document_id, chunk.heading, chunk.text, True)
                for chunk in relevant_chunks(spans, chunks_of)[:1]
            ]
            passages = [*passages[: len(passages) - len(missing)], *missing]
        prompt = _shuffled(passages, question, answer, config, tokenizer, row["question_id"])
    else:
        prompt = pack(passages, question, answer, config, tokenizer)
    closed_book = source_messages(config.closed_book_instruction, [], question)
    return {
        "example_id": row["question_id"],
        "split": row["split"],
        "question": question,
        "answers": row["answers"],
        "messages": prompt.messages,
        "input_ids": prompt.input_ids,
        "prompt_length": prompt.prompt_length,
        "closed_book_ids": tokenizer.prompt_ids(closed_book),
        "context_ids": [passage.chunk_id for passage in prompt.passages],
        "document_ids": [passage.document_id for passage in prompt.passages],
        "oracle_ids": [passage.chunk_id for passage in prompt.passages if passage.oracle],
        "distractor_ids": [passage.chunk_id for passage in prompt.passages if not passage.oracle],
        "dropped_ids": [passage.chunk_id for passage in prompt.dropped],
        "dropped_reason": f"over the budget of {config.token_budget} tokens" if prompt.dropped else "",
    }


def _shuffled(
    passages: list[Passage],
    question: str,
    answer: str,
    config: PromptsConfig,
    tokenizer: ChatTokenizer,
    question_id: str,
) -> Prompt:
    """A training prompt: the oracle has the first claim on the budget, then the order is drawn."""
    by_claim = sorted(passages, key=lambda passage: not passage.oracle)  # stable: by rank otherwise
    chosen = pack(by_claim, question, answer, config, tokenizer)
    seed = hashlib.sha256(f"{config.seed} {question_id}".encode()).digest()
    order = list(chosen.passages)
    random.Random(seed).shuffle(order)  # noqa: S311 -- an order, not a secret
    shuffled = pack(order, question, answer, config, tokenizer)
    if shuffled.dropped:  # another order may take a token more; keep the one that fits
        return chosen
    return Prompt(
        shuffled.messages, shuffled.input_ids, shuffled.prompt_length, shuffled.passages, chosen.dropped
    )


def _counts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    from retrieval.questions import SPLITS

    lengths = [len(row["input_ids"]) for row in rows]
    histogram: dict[str, int] = {}
    for length in sorted(lengths):
        bucket = str(1 << (length - 1).bit_length())  # up to the next power of two
        histogram[bucket] = histogram.get(bucket, 0) + 1
    train = [length for row, length in zip(rows, lengths, strict=True) if row["split"] == "train"]
    return {
        "questions": {split: sum(row["split"] == split for row in rows) for split in SPLITS},
        "tokens": {"train": sum(train), "mean": round(sum(lengths) / len(lengths), 1), "max": max(lengths)},
        "scored_tokens": sum(
            len(row["input_ids"]) - row["prompt_length"] for row in rows if row["split"] == "train"
        ),
        "length_histogram": histogram,
        "with_oracle": {
            split: sum(row["split"] == split and bool(row["oracle_ids"]) for row in rows) for split in SPLITS
        },
        "dropped_chunks": sum(len(row["dropped_ids"]) for row in rows),
    }


def _shortened(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
