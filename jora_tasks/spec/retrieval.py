"""Settings of retrieval."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from jora_tasks.spec.section import Section


class RetrievalConfig(Section):
    top_k: Annotated[int, Field(ge=1, le=100, description="Chunks retrieved for each question.")] = 4
