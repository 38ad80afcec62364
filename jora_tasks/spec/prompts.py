"""Settings of the questions and the prompts made of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from jora_tasks.spec.section import LARGEST_SEED, LOCAL_PATH, Section, as_tuple

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
    further_instructions: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        Field(
            description="Other phrasings of the instruction; a training prompt has one of all, drawn by "
            "seed, held-out prompts have the instruction itself."
        ),
    ] = ()
    closed_book_instruction: Annotated[
        str, Field(min_length=1, description="What the model is told where it gets no sources.")
    ] = DEFAULT_CLOSED_BOOK_INSTRUCTION
    add_missing_oracle: Annotated[
        bool,
        Field(
            description="Put a chunk with the evidence into a training prompt whose retrieval missed it, "
            "one for each piece of evidence."
        ),
    ] = True
    oracle_fraction: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of the training prompts that keep the chunks with the evidence; the others "
            "have distractors alone (RAFT's P, arXiv 2403.10131).",
        ),
    ] = 1.0
    distractors: Annotated[
        int,
        Field(
            ge=0,
            le=1000,
            description="Chunks without evidence in a training prompt; 0 for as many as retrieval serves.",
        ),
    ] = 0
    distractor_source: Annotated[
        Literal["retrieved", "hard", "random"],
        Field(
            description="Distractors of training prompts: what was retrieved, by rank; of that what lacks "
            "the answer and keeps the margin (hard); or any chunks without the answer (random)."
        ),
    ] = "retrieved"
    distractor_margin: Annotated[
        float,
        Field(
            ge=0,
            le=1000,
            description="A hard distractor's score is at least so far below that of the best chunk with the "
            "evidence; 0 sets no bound. In the retriever's own units.",
        ),
    ] = 0.0
    without_oracle: Annotated[
        Literal["answer", "abstain"],
        Field(
            description="What a training prompt without any of its evidence teaches: the answer, "
            "or the abstention."
        ),
    ] = "answer"
    abstention: Annotated[
        str, Field(min_length=1, max_length=1000, description="What to say where the sources do not tell.")
    ] = "The sources do not say."
    cite: Annotated[
        bool, Field(description="Teach answers that end with their sources' labels, as in: 30 days [2].")
    ] = False
    cite_instruction: Annotated[
        str, Field(min_length=1, description="Added to every instruction where answers cite.")
    ] = "End with the numbers of the sources that say it, as in [2]."
    remove_overlap: Annotated[
        bool,
        Field(
            description="Leave out training questions that share their words, 13 words in a row, or their "
            "fact with a dev or test question. They are listed in overlap.jsonl either way."
        ),
    ] = True
    mix_path: Annotated[
        str,
        Field(
            max_length=4000,
            pattern=r"^[^\x00]*$",
            description="General instructions to mix in: Alpaca or chat, as JSON or JSONL; none if empty.",
        ),
    ] = ""
    mix_fraction: Annotated[
        float,
        Field(ge=0, le=0.95, description="Share of the training examples that are general instructions."),
    ] = 0.0
    seed: Annotated[
        int, Field(ge=0, le=LARGEST_SEED, description="Seed of everything drawn for training prompts.")
    ] = 0

    _listed = field_validator("further_instructions", mode="before")(as_tuple)

    @model_validator(mode="after")
    def _mixed_from_a_file(self) -> PromptsConfig:
        if self.mix_fraction and not self.mix_path:
            raise ValueError("mix_fraction needs a file of instructions; name it in mix_path")
        return self

    def making(self) -> dict[str, Any]:
        """The settings that decide what is made, as JSON: a file counts by its content, not its place."""
        return self.model_dump(mode="json", exclude={"mix_path"})
