"""Settings of the evaluation and the registry."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from jora_tasks.spec.section import LARGEST_SEED, Section


class EvaluationConfig(Section):
    max_questions: Annotated[
        int, Field(ge=1, description="Most test questions asked; the first ones by id digest.")
    ] = 1000
    max_new_tokens: Annotated[int, Field(ge=1, le=4096, description="Longest generated answer.")] = 32
    batch_size: Annotated[int, Field(ge=1, le=1024, description="Questions answered at once.")] = 8
    bootstrap_samples: Annotated[
        int, Field(ge=100, le=100000, description="Resamples behind each interval.")
    ] = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1, description="Coverage of the intervals.")] = 0.95
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED, description="Seed of the resampling.")] = 0

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
