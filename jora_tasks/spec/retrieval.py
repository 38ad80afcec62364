"""Settings of retrieval."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from jora_tasks.spec.section import Section, as_tuple

AUTO_MODE: Literal["auto"] = "auto"


def _text(value: Any) -> Any:
    """A number, true or false as metadata has it: as text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


FilterValue = Annotated[str, BeforeValidator(_text, json_schema_input_type=str | int | float | bool)]


class RetrievalConfig(Section):
    mode: Annotated[
        Literal["auto", "dense", "lexical", "hybrid"],
        Field(
            description="Search by vectors (dense), by words (lexical: BM25), by both (hybrid), or by what "
            "ranks the evidence of the dev questions highest (auto: dense unless another is surely better)."
        ),
    ] = AUTO_MODE
    dense_weight: Annotated[
        float,
        Field(gt=0, lt=1, description="Say of the vectors where mode is hybrid; the rest is the words'."),
    ] = 0.5
    top_k: Annotated[int, Field(ge=1, le=100, description="Chunks retrieved for each question.")] = 4
    candidates: Annotated[
        int,
        Field(
            ge=0,
            le=1000,
            description="Ranks kept for each question, beyond top_k for distractors of training prompts.",
        ),
    ] = 20
    reranker: Annotated[
        str,
        Field(
            max_length=4000,
            pattern=r"^[^\x00]*$",
            description="Folder or hub id of a cross-encoder that puts what was found into a new order; "
            "empty for none.",
        ),
    ] = ""
    shards: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="Airflow tasks that embed and rerank ahead of the contexts, each for a part of the "
            "questions.",
        ),
    ] = 1
    near_duplicates: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="A chunk that shares this part of its runs of five words with a better one is left "
            "out; 0 leaves none out.",
        ),
    ] = 0.9
    filters: Annotated[
        dict[str, FilterValue | tuple[FilterValue, ...]],
        Field(description="Search only documents whose metadata has this value, or one of these, by key."),
    ] = {}  # noqa: RUF012 (pydantic copies it)

    def making(self) -> dict[str, Any]:
        """The settings that decide what is found, as JSON; the reranker counts by its files."""
        return self.model_dump(mode="json", exclude={"reranker", "shards"})

    @field_validator("filters", mode="before")
    @classmethod
    def _as_tuples(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: as_tuple(each) for key, each in value.items()}

    @field_validator("filters")
    @classmethod
    def _some_value(cls, value: dict[str, str | tuple[str, ...]]) -> dict[str, str | tuple[str, ...]]:
        for key, each in value.items():
            if each == ():
                raise ValueError(f"{key} has no value; give one or leave the key out")
        return value
