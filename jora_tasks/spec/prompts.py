"""Settings of the questions and the prompts made of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from jora_tasks.spec.section import LARGEST_SEED, LOCAL_PATH, Section

DEFAULT_INSTRUCTION = (
    "Answer the question from the numbered sources. Reply with the answer alone, as short as possible."
)
DEFAULT_CLOSED_BOOK_INSTRUCTION = "Answer the question. Reply with the answer alone, as short as possible."


class QuestionsConfig(Section):
    path: Annotated[
        str,
        Field(
            description="JSONL with question, answers and, if known, id, evidence and split; "
            "or Alpaca JSON with instruction, input and output.",
            **LOCAL_PATH,
        ),
    ] = "questions.jsonl"
    dev_fraction: Annotated[
        float, Field(ge=0, le=0.5, description="Share held out for choices; used where no split is given.")
    ] = 0.1
    test_fraction: Annotated[
        float, Field(ge=0, le=0.5, description="Share held out for evaluation; used where no split is given.")
    ] = 0.2
    split_by: Annotated[
        Literal["group", "document"],
        Field(
            description="What is never in two splits: the rows of a group, or also the questions whose "
            "evidence shares a document."
        ),
    ] = "group"
    group_field: Annotated[
        str,
        Field(
            min_length=1,
            max_length=100,
            description="Field of a row that names its group; a row without it is a group by itself.",
        ),
    ] = "group"
    missing_evidence: Annotated[
        Literal["keep", "drop", "error"],
        Field(
            description="A question with evidence that the documents no longer hold: keep it without that "
            "evidence, leave it out, or stop. Either way it is counted and listed in missing_evidence.jsonl."
        ),
    ] = "keep"

    def making(self) -> dict[str, Any]:
        """The settings that decide what is made, as JSON: the file counts by its content, not its place."""
        return self.model_dump(mode="json", exclude={"path"})


class PromptsConfig(Section):
    token_budget: Annotated[
        int,
        Field(ge=64, le=131072, description="Longest prompt with its answer, in tokens of the base model."),
    ] = 640
    instruction: Annotated[
        str, Field(min_length=1, description="What the model is told before the sources.")
    ] = DEFAULT_INSTRUCTION
    closed_book_instruction: Annotated[
        str, Field(min_length=1, description="What the model is told where it gets no sources.")
    ] = DEFAULT_CLOSED_BOOK_INSTRUCTION
    add_missing_oracle: Annotated[
        bool,
        Field(
            description="Put the chunk that holds the evidence into a training prompt "
            "whose retrieval missed it."
        ),
    ] = True
    seed: Annotated[
        int, Field(ge=0, le=LARGEST_SEED, description="Seed of the order of sources in training prompts.")
    ] = 0
