"""Settings of the documents and their index."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from jora_tasks.spec.section import LOCAL_PATH, Section

DEFAULT_EMBEDDER = "all-minilm-l6-v2"


class DocumentsConfig(Section):
    path: Annotated[
        str, Field(description="Folder of .txt, .md, .rst, .html and .jsonl files.", **LOCAL_PATH)
    ] = "documents"


class IndexConfig(Section):
    embedder: Annotated[
        str,
        Field(
            min_length=1,
            description="Name of a fetched embedder, a sentence-transformers folder or a hub id.",
        ),
    ] = DEFAULT_EMBEDDER
    chunk_tokens: Annotated[
        int, Field(ge=16, le=8192, description="Longest chunk, in tokens of the embedder.")
    ] = 200
    chunk_overlap: Annotated[
        int, Field(ge=0, le=4096, description="Tokens that a chunk repeats from the one before.")
    ] = 0
    batch_size: Annotated[int, Field(ge=1, le=4096, description="Chunks embedded at once.")] = 32

    @model_validator(mode="after")
    def _overlap_below_length(self) -> IndexConfig:
        if self.chunk_overlap >= self.chunk_tokens:
            raise ValueError(
                f"chunk_overlap ({self.chunk_overlap}) must be smaller "
                f"than chunk_tokens ({self.chunk_tokens})"
            )
        return self
