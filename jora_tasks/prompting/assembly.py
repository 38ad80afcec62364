"""A question with its contexts, or a general instruction → a row of ``prompts.parquet``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jora_tasks.prompting.conversation import (
    cited,
    served_instruction,
    source_messages,
    training_instruction,
)
from jora_tasks.prompting.draws import draws
from jora_tasks.prompting.mix import asked_of
from jora_tasks.prompting.packing import Packer, Prompt
from jora_tasks.prompting.passages import Library, Passage, Retrieved
from jora_tasks.prompting.raft import BUDGET, Selection, select_sources
from jora_tasks.spec import PromptsConfig

if TYPE_CHECKING:
    from jora_tasks.trainer.data import Conversation
    from jora_tasks.trainer.tokenizer import ChatTokenizer

QUESTION, INSTRUCTION = "question", "instruction"
Row = dict[str, Any]


def prompts_schema() -> Any:
    """Columns of ``prompts.parquet``.

    ``input_ids[prompt_length:]`` is what is learned: the answer (or, if the row ``abstains``, the
    abstention) and its end. ``oracle_labels`` are the places, from 1, of the sources with evidence;
    ``dropped`` are the retrieved or chosen chunks that are not among the sources, and why.
    """
    import pyarrow as pa

    texts, ids = pa.list_(pa.string()), pa.list_(pa.int32())
    return pa.schema(
        [
            ("example_id", pa.string()),
            ("kind", pa.string()),
            ("split", pa.string()),
            ("question", pa.string()),
            ("answers", texts),
            ("abstains", pa.bool_()),
            ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
            ("input_ids", ids),
            ("prompt_length", pa.int32()),
            ("closed_book_ids", ids),
            ("context_ids", texts),
            ("document_ids", texts),
            ("oracle_ids", texts),
            ("oracle_labels", ids),
            ("distractor_ids", texts),
            ("dropped", pa.list_(pa.struct([("chunk_id", pa.string()), ("reason", pa.string())]))),
        ]
    )


class Assembler:
    """Makes the rows of one artifact."""

    def __init__(self, config: PromptsConfig, tokenizer: ChatTokenizer, library: Library) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._library = library
        self._packer = Packer(tokenizer, config.token_budget)

    def question(self, question: Retrieved) -> tuple[Row, Selection]:
        """The row of a question, and how its sources were chosen.

        A training prompt's sources are those of `select_sources`, in a random order that the seed and the
        question's id decide, so that an answer's place teaches nothing; the oracles have the first claim
        on the budget. Dev and test prompts have what was retrieved, by rank, as retrieval will serve it.

        Raises:
          InputError: see `Packer.pack`.
        """
        config = self._config
        if question.split != "train":
            selection = Selection(question.contexts, {})
            prompt = self._packer.pack(
                question.question,
                served_instruction(config),
                selection.passages,
                self._answering(question.answers[0]),
            )
            return self._row(question, prompt, selection, abstains=False), selection
        selection = select_sources(question, config, self._library)
        abstains = (
            config.without_oracle == "abstain"
            and bool(question.spans)
            and not any(each.oracle for each in selection.passages)
        )

        def shuffled(chosen: Sequence[Passage]) -> list[Passage]:
            order = list(chosen)
            draws(config.seed, question.id).shuffle(order)
            return order

        prompt = self._packer.pack(
            question.question,
            training_instruction(config, question.id),
            selection.passages,
            self._answering(config.abstention if abstains else question.answers[0]),
            shuffled,
        )
        return self._row(question, prompt, selection, abstains=abstains), selection

    def instruction(self, conversation: Conversation) -> Row | None:
        """The training row of a general instruction, without sources; None if it is over the budget."""
        ids, length = self._tokenizer.render(conversation.messages)
        if len(ids) > self._config.token_budget:
            return None
        asked = asked_of(conversation)
        return {
            "example_id": asked.id,
            "kind": INSTRUCTION,
            "split": "train",
            "question": asked.question,
            "answers": list(asked.answers),
            "abstains": False,
            "messages": conversation.messages,
            "input_ids": ids,
            "prompt_length": length,
            "closed_book_ids": ids[:length],
            "context_ids": [],
            "document_ids": [],
            "oracle_ids": [],
            "oracle_labels": [],
            "distractor_ids": [],
            "dropped": [],
        }

    def _answering(self, answer: str) -> Callable[[Sequence[Passage]], str]:
        if not self._config.cite:
            return lambda placed: answer
        return lambda placed: cited(answer, oracle_labels(placed))

    def _row(self, question: Retrieved, prompt: Prompt, selection: Selection, *, abstains: bool) -> Row:
        placed = prompt.passages
        closed_book = source_messages(self._config.closed_book_instruction, [], question.question)
        reasons = selection.reasons | {each.chunk_id: BUDGET for each in prompt.dropped}
        return {
            "example_id": question.id,
            "kind": QUESTION,
            "split": question.split,
            "question": question.question,
            "answers": list(question.answers),
            "abstains": abstains,
            "messages": prompt.messages,
            "input_ids": prompt.input_ids,
            "prompt_length": prompt.prompt_length,
            "closed_book_ids": self._tokenizer.prompt_ids(closed_book),
            "context_ids": [each.chunk_id for each in placed],
            "document_ids": [each.document_id for each in placed],
            "oracle_ids": [each.chunk_id for each in placed if each.oracle],
            "oracle_labels": oracle_labels(placed),
            "distractor_ids": [each.chunk_id for each in placed if not each.oracle],
            "dropped": [{"chunk_id": id_, "reason": reason} for id_, reason in reasons.items()],
        }


def oracle_labels(placed: Sequence[Passage]) -> list[int]:
    """The labels of the sources with evidence, counted from 1."""
    return [label for label, each in enumerate(placed, start=1) if each.oracle]
