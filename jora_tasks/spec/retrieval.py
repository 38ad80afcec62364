"""Settings of retrieval."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from jora_tasks.spec.section import Section


class RetrievalConfig(Section):
    top_k: Annotated[int, Field(ge=1, le=100, description="Chunks retrieved for each question.")] = 4
    candidates: Annotated[
        int,
        Field(
            ge=0,
            le=1000,
            description="Ranks kept for each question, beyond top_k for distractors of training prompts.",
        ),
    ] = 20
