"""Settings of the documents and their index."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from jora_tasks.spec.section import LOCAL_PATH, SECRET, Section, as_tuple, is_url

DEFAULT_EMBEDDER = "all-minilm-l6-v2"

# fmt: off
Encoding = Literal[
    "auto", "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "koi8_r",
    "iso8859_2", "iso8859_15", "mac_roman", "cp437", "cp932", "euc_jp", "gb18030", "big5", "cp949",
]
# fmt: on
Column = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]+$")]


class DocumentsConfig(Section):
    path: Annotated[
        str,
        Field(
            description="Folder of .txt, .md, .rst, .html, .pdf, .docx, .jsonl, .csv, .tsv, .parquet and "
            ".zip files, one such file, or a URL that fsspec opens, as in s3://bucket/handbook.",
            **LOCAL_PATH,
        ),
    ] = "documents"
    text_column: Annotated[
        Column, Field(description="Column of tables and field of JSON rows that holds the text.")
    ] = "text"
    id_column: Annotated[
        Column, Field(description="Column of the document's id; without it, file and number of the row.")
    ] = "id"
    title_column: Annotated[Column, Field(description="Column of the title; without it, the id.")] = "title"
    metadata_columns: Annotated[
        tuple[Column, ...],
        Field(description="Columns kept as metadata, beside what JSON rows have under metadata."),
    ] = ()
    encoding: Annotated[
        Encoding,
        Field(description="Encoding of text that is not UTF-8, UTF-16 or UTF-32; auto guesses it."),
    ] = "auto"
    max_file_mib: Annotated[
        int, Field(ge=1, le=2048, description="Largest file of one document, and longest row, in MiB.")
    ] = 100
    max_archive_mib: Annotated[
        int, Field(ge=1, le=2**20, description="Most that the files of a .zip come to unpacked, in MiB.")
    ] = 4096
    unreadable: Annotated[
        Literal["skip", "error"],
        Field(description="A file or row that cannot be read: leave it out and report it, or stop."),
    ] = "skip"
    duplicates: Annotated[
        Literal["keep", "drop"],
        Field(
            description="Documents with the text of an earlier one: keep them, since questions may name "
            "either id, or drop them; they are counted."
        ),
    ] = "keep"

    @field_validator("path")
    @classmethod
    def _without_secrets(cls, value: str) -> str:
        if is_url(value) and (urlsplit(value).password or urlsplit(value).query):
            raise PydanticCustomError(
                SECRET,
                "a URL must hold no password and no query, since it is written to logs and records; "
                "give credentials in the environment, as fsspec's file system has them",
            )
        return value

    _listed = field_validator("metadata_columns", mode="before")(as_tuple)

    def making(self) -> dict[str, Any]:
        """The settings that decide what a corpus holds, as JSON: not where the documents lie."""
        return self.model_dump(mode="json", exclude={"path", "unreadable"})


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
