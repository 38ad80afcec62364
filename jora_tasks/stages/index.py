"""Corpus → index: chunks, their vectors and the embedder that made them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_tasks.artifacts import Artifact, ArtifactStore, Source
from jora_tasks.errors import InputError
from jora_tasks.models import embedder_folder, model_source
from jora_tasks.progress import Progress
from jora_tasks.spec import RunSpec
from jora_tasks.stages.corpus import DOCUMENTS

if TYPE_CHECKING:
    from retrieval.embedding import Embedder

VERSION = 2


def build_index(spec: RunSpec, corpus: Artifact, store: ArtifactStore, progress: Progress) -> Artifact:
    """Chunk and embed the corpus.

    The artifact holds ``chunks.parquet``, ``index.faiss`` (row i is chunk i), ``embedder.json``
    and ``lexical/``.

    Raises:
      InputError: if chunks of ``index.chunk_tokens`` do not fit the embedder, or its vectors are
        not finite.
    """
    folder, source = find_embedder(spec, store)

    def write(target: Path) -> Mapping[str, Any]:
        import pyarrow.parquet as pq

        from retrieval.chunking import chunk_document
        from retrieval.documents import Document
        from retrieval.embedding import Embedder, embedding_text
        from retrieval.index import write_index
        from retrieval.lexical import write_lexical
        from retrieval.search import shown_text

        embedder = Embedder(folder, source.name, source.digest)
        room = _heading_room(spec, embedder)
        chunks = []
        rows = pq.read_table(corpus.file(DOCUMENTS)).to_pylist()
        for number, row in enumerate(rows, start=1):
            document = Document(row["document_id"], row["source"], row["title"], row["text"])
            chunks += chunk_document(
                document, embedder.offsets, spec.index.chunk_tokens, spec.index.chunk_overlap
            )
            progress("index", done=number, total=len(rows), unit="documents chunked")
        vectors = embedder.embed_texts(
            [embedding_text(chunk, embedder.offsets, room) for chunk in chunks],
            spec.index.batch_size,
            lambda done: progress("index", done=done, total=len(chunks), unit="chunks embedded"),
        )
        write_index(target, chunks, vectors, embedder.identity)
        write_lexical(target, (shown_text(chunk) for chunk in chunks))
        return {
            "documents": len(rows),
            "chunks": len(chunks),
            "tokens": sum(chunk.n_tokens for chunk in chunks),
            "dimension": embedder.identity.dimension,
        }

    return store.build(
        "index",
        version=VERSION,
        settings={"chunk_tokens": spec.index.chunk_tokens, "chunk_overlap": spec.index.chunk_overlap},
        inputs={"corpus": corpus, "embedder": source},
        write=write,
    )


def find_embedder(spec: RunSpec, store: ArtifactStore) -> tuple[Path, Source]:
    """The folder of the embedder that the spec names, and what it is as an input."""
    folder = embedder_folder(spec.index.embedder, store.home)
    return folder, model_source(folder, spec.index.embedder)


def _heading_room(spec: RunSpec, embedder: Embedder) -> int:
    """Tokens left for the heading path before a full chunk: an embedder cuts longer text unasked."""
    longest = embedder.identity.max_seq_length - embedder.start_and_end_tokens
    if spec.index.chunk_tokens > longest:
        raise InputError(
            f"index.chunk_tokens is {spec.index.chunk_tokens}, but the embedder {spec.index.embedder} reads "
            f"only {longest} tokens of a text; set index.chunk_tokens to at most {longest}."
        )
    # one token for the newline in between, where the embedder has one
    return max(0, longest - spec.index.chunk_tokens - 1)
