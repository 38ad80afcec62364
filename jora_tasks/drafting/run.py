"""Chunks → a questions file: draft, refuse, ask without the chunk, keep; going on from where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_tasks.drafting.drafts import (
    DUPLICATE,
    KEPT,
    NO_DRAFT,
    WITHOUT_CHUNK,
    Draft,
    answered_without,
    closed_book_messages,
    draft_messages,
    parse_reply,
    question_row,
    refusal,
    same_question,
)
from jora_tasks.drafting.journal import Journal
from jora_tasks.drafting.writers import Failed, Writer
from jora_tasks.errors import InputError
from jora_tasks.reading import read_text
from jora_tasks.writing import write_text

if TYPE_CHECKING:
    from retrieval.chunk_table import ChunkTable
    from retrieval.chunking import Chunk

Attempt = tuple[str, str, dict[str, Any] | None]


def draft_questions(
    chunks: ChunkTable,
    writer: Writer,
    output: Path,
    *,
    count: int | None = None,
    min_tokens: int = 20,
    seed: int = 0,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> dict[str, Any]:
    """Draft a question of each chunk and keep those that need it and can be answered from it.

    What was attempted lies in ``<output's name>.attempts.jsonl`` beside the output, a line a chunk, on disk
    as soon as it is known; ``output`` is written from it at the end, however that comes. Chunks that have a
    line there are not attempted again.

    Args:
      chunks: of the index, attempted in an order that the seed draws.
      writer: drafts, and answers without the chunk.
      output: questions file (JSONL) to write.
      count: questions after which to stop; None attempts all chunks.
      min_tokens: shorter chunks are left out.
      on_progress: called with chunks attempted, all of them, and questions kept.

    Returns:
      chunks, attempted and kept, and refused: reason → chunks.

    Raises:
      InputError: if the output is there already and not as such a run left it, or see `Journal` and the
        writer.
      RunStopped: see the writer; what was drafted so far is in the output.
    """
    journal_file = output.with_name(f"{output.stem}.attempts.jsonl")
    if output.exists() and not journal_file.exists():
        raise InputError(f"--output {output} exists and was not drafted; give a file that is absent.")
    ordered = _drawn(chunks, min_tokens, seed)
    if not ordered:
        raise InputError(
            f"No chunk of the index has {min_tokens} tokens; lower --min-tokens, or index longer documents."
        )
    with Journal(journal_file, writer.identity) as journal:
        if output.exists() and not _written(journal).startswith(read_text(output)):
            raise InputError(
                f"--output {output} was changed since it was drafted; give a file that is absent, or copy it "
                "elsewhere and remove it here."
            )
        try:
            asked = {same_question(row["question"]) for row in journal.rows}
            left = [row for id_, row in ordered if id_ not in journal.outcomes]
            while left and (count is None or len(journal.rows) < count):
                now, left = chunks.take(left[: writer.at_once]), left[writer.at_once :]
                room = None if count is None else count - len(journal.rows)
                journal.add(_attempts(now, writer, asked, room))
                if on_progress is not None:
                    on_progress(len(ordered) - len(left), len(ordered), len(journal.rows))
        finally:
            if not journal.outcomes:
                journal_file.unlink()  # else another model could not begin
            if journal.rows:
                write_text(output, _written(journal))
        counts = journal.counts()
        return {
            "chunks": len(ordered),
            "attempted": sum(counts.values()),
            "kept": counts.pop(KEPT, 0),
            "refused": dict(counts.most_common()),
        }


def _attempts(
    chunks: Sequence[Chunk], writer: Writer, asked: set[str], room: int | None
) -> Iterator[Attempt]:
    """What became of each chunk, up to the last one needed; what is kept is added to ``asked``."""
    outcomes: dict[str, str] = {}
    drafts: dict[str, Draft] = {}
    replies = writer.reply([draft_messages(chunk) for chunk in chunks])
    for chunk, reply in zip(chunks, replies, strict=True):
        draft = None if isinstance(reply, Failed) else parse_reply(reply)
        if isinstance(reply, Failed):
            outcomes[chunk.id] = reply.reason
        elif draft is None:
            outcomes[chunk.id] = NO_DRAFT
        elif reason := refusal(draft, chunk, asked):
            outcomes[chunk.id] = reason
        else:
            drafts[chunk.id] = draft
    closed = (
        writer.reply([closed_book_messages(draft.question) for draft in drafts.values()]) if drafts else []
    )
    for (chunk_id, draft), reply in zip(drafts.items(), closed, strict=True):
        if isinstance(reply, Failed):
            outcomes[chunk_id] = reply.reason
        elif answered_without(reply, draft):
            outcomes[chunk_id] = WITHOUT_CHUNK
    kept = 0
    for chunk in chunks:
        if kept == room:
            return
        outcome = outcomes.get(chunk.id, KEPT)
        if outcome == KEPT and same_question(drafts[chunk.id].question) in asked:
            outcome = DUPLICATE
        if outcome != KEPT:
            yield chunk.id, outcome, None
            continue
        asked.add(same_question(drafts[chunk.id].question))
        kept += 1
        yield chunk.id, KEPT, question_row(drafts[chunk.id], chunk)


def _written(journal: Journal) -> str:
    """The questions file of what a journal kept."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in journal.rows)


def _drawn(chunks: ChunkTable, min_tokens: int, seed: int) -> list[tuple[str, int]]:
    """Id and row of each chunk that is long enough, in the order that the seed draws."""
    columns = chunks.columns("chunk_id", "n_tokens")
    pairs = enumerate(zip(columns["chunk_id"], columns["n_tokens"], strict=True))
    found = [(id_, row) for row, (id_, tokens) in pairs if tokens >= min_tokens]
    return sorted(found, key=lambda each: hashlib.sha256(f"{seed} {each[0]}".encode()).digest())
