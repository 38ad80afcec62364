"""Settings of the evaluation and the registry."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from jora_tasks.spec.section import LARGEST_SEED, Section, as_tuple


class EvaluationConfig(Section):
    max_questions: Annotated[
        int, Field(ge=1, description="Most test questions asked; the first ones by id digest.")
    ] = 1000
    max_new_tokens: Annotated[int, Field(ge=1, le=4096, description="Longest generated answer.")] = 32
    batch_size: Annotated[int, Field(ge=1, le=1024, description="Questions answered at once.")] = 8
    shards: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="Airflow tasks that answer ahead of the evaluation, each a part of every arm's "
            "questions.",
        ),
    ] = 1
    cluster_by: Annotated[
        Literal["document", "group"],
        Field(
            description="Questions that are drawn together for intervals: those on one source document or of "
            "one group, or of one group alone (where all evidence is in a few documents)."
        ),
    ] = "document"
    nli_model: Annotated[
        str,
        Field(
            max_length=4000,
            pattern=r"^[^\x00]*$",
            description="Folder or hub id of a cross-encoder for natural language inference, which judges "
            "whether what an answer cites supports it; empty for a proxy of that: its words and the known "
            "evidence.",
        ),
    ] = ""
    slices: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=100)], ...],
        Field(
            description="What else to report by: fields of the questions file, or metadata keys of the "
            "documents with the evidence."
        ),
    ] = ()
    bootstrap_samples: Annotated[
        int,
        Field(
            ge=100, le=100000, description="Resamples behind each interval, sign flips behind each p-value."
        ),
    ] = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1, description="Coverage of the intervals.")] = 0.95
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED, description="Seed of the resampling.")] = 0

    _listed = field_validator("slices", mode="before")(as_tuple)

    def resampling(self) -> dict[str, Any]:
        """The settings that decide an interval."""
        return self.model_dump(mode="json", include={"bootstrap_samples", "confidence", "seed"})


class RegistryConfig(Section):
    promotion: Annotated[
        Literal["automatic", "approval", "none"],
        Field(
            description="What follows a passed gate: the adapter becomes champion, a person is asked first, "
            "or it stays a candidate."
        ),
    ] = "automatic"
    approval_hours: Annotated[
        float,
        Field(gt=0, le=8760, description="How long a person may take to approve; after it the answer is no."),
    ] = 72.0
