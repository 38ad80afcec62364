"""Settings of the promotion gate: what an adapter must show before it may become champion."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from jora_tasks.spec.section import Section, as_tuple

Measure = Literal["exact_match", "f1"]
Opponent = Literal["base", "champion"]
Margin = Annotated[float, Field(ge=0, le=1000)]


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
    min_questions: Annotated[
        int,
        Field(ge=1, le=1_000_000, description="Fewest test questions that a promotion may rest on."),
    ] = 1

    _listed = field_validator("must_rise", "rise_against", mode="before")(as_tuple)

    @model_validator(mode="after")
    def _asks_for_something(self) -> GateConfig:
        if not self.must_rise and not self.must_not_fall:
            raise ValueError(
                "the gate would let every adapter pass; name a measure in must_rise or must_not_fall"
            )
        return self

    def making(self) -> dict[str, Any]:
        """The settings that decide a verdict, as JSON."""
        return self.model_dump(mode="json")
