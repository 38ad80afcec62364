"""Settings of the documents and their index."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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
    query_prompt: Annotated[
        str,
        Field(
            max_length=1000,
            description="Put before each question, as in 'query: '; if empty, what the embedder's own "
            "settings say.",
        ),
    ] = ""
    passage_prompt: Annotated[
        str, Field(max_length=1000, description="Put before each chunk, as in 'passage: '; as query_prompt.")
    ] = ""
    backend: Annotated[
        Literal["torch", "onnx_int8"],
        Field(
            description="What computes the vectors: torch in float32, or ONNX Runtime in 8 bits, which is "
            "less exact."
        ),
    ] = "torch"
    batch_tokens: Annotated[int, Field(ge=1, le=2**20, description="Most tokens embedded at once.")] = 2048
    shards: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="Airflow tasks that embed at the same time, each a part of the documents.",
        ),
    ] = 1
    type: Annotated[
        str,
        Field(
            pattern=r"^(auto|flat|ivf_flat|ivf_sq8|[A-Z][A-Za-z0-9_,()]*)$",
            max_length=100,
            description="flat (exact), ivf_flat, ivf_sq8 (a quarter of the memory) or a factory string of "
            "faiss; auto is flat up to 200,000 chunks, then ivf_flat.",
        ),
    ] = "auto"
    recall_target: Annotated[
        float,
        Field(
            ge=0.5,
            le=1,
            description="Least recall@10 against exact search; types that are not exact are searched as "
            "broadly as it needs.",
        ),
    ] = 0.98

    @model_validator(mode="after")
    def _overlap_below_length(self) -> IndexConfig:
        if self.chunk_overlap >= self.chunk_tokens:
            raise ValueError(
                f"chunk_overlap ({self.chunk_overlap}) must be smaller "
                f"than chunk_tokens ({self.chunk_tokens})"
            )
        return self

    def making(self) -> dict[str, Any]:
        """The settings that decide what is made, as JSON: the embedder counts by its content."""
        return self.model_dump(mode="json", exclude={"embedder", "batch_tokens", "shards"})
