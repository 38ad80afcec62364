"""Settings of the promotion gate: what an adapter must show before it may become champion."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from jora_tasks.spec.section import Section, as_tuple

Measure = Literal[
    "exact_match",
    "f1",
    "contains_answer",
    "rouge_l",
    "answer_loss",
    "abstention_recall",
    "citation_precision",
    "citation_recall",
]
LOWER_IS_BETTER: tuple[Measure, ...] = ("answer_loss",)
Opponent = Literal["base", "champion"]
Margin = Annotated[float, Field(gt=0, le=1000)]


class GateConfig(Section):
    must_rise: Annotated[
        tuple[Measure, ...],
        Field(description="Measures whose paired interval must lie on the better side of 0."),
    ] = ("exact_match",)
    rise_against: Annotated[
        tuple[Opponent, ...],
        Field(
            min_length=1,
            description="Whom they must beat: the base with the same contexts, the champion, or both.",
        ),
    ] = ("base", "champion")
    must_not_fall: Annotated[
        dict[Measure, Margin],
        Field(
            description="Measures that must be no worse than those of base and champion: the margin, in the "
            "measure's own unit, by which the paired interval may lie on the worse side of 0."
        ),
    ] = {}  # noqa: RUF012 (pydantic copies it)
    slices: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=100)], ...],
        Field(
            description="What must_not_fall is asked of apart as well: each value of these fields of the "
            "questions file, or metadata keys of the documents with the evidence, with questions enough."
        ),
    ] = ()
    min_questions: Annotated[
        int,
        Field(ge=1, le=1_000_000, description="Fewest test questions that a promotion may rest on."),
    ] = 1

    canary_path: Annotated[
        str,
        Field(
            max_length=4000,
            pattern=r"^[^\x00]*$",
            description="A questions file that is asked of adapter and champion (else the base) every time; "
            "none if empty.",
        ),
    ] = ""
    max_regressions: Annotated[
        int,
        Field(
            ge=0,
            le=1_000_000,
            description="Most canary questions that the champion answers right and the adapter does not.",
        ),
    ] = 0

    _listed = field_validator("must_rise", "rise_against", "slices", mode="before")(as_tuple)

    @model_validator(mode="after")
    def _asks_for_something(self) -> GateConfig:
        if not self.must_rise and not self.must_not_fall:
            raise ValueError(
                "the gate would let every adapter pass; name a measure in must_rise or must_not_fall"
            )
        if self.slices and not self.must_not_fall:
            raise ValueError("slices say where must_not_fall is asked too; name a measure there")
        if self.max_regressions and not self.canary_path:
            raise ValueError("max_regressions counts canary questions; name their file in canary_path")
        return self

    def making(self) -> dict[str, Any]:
        """The settings that decide a verdict, as JSON; the canary questions count by what was answered."""
        return self.model_dump(mode="json", exclude={"canary_path"})
