"""Documents → corpus: normalised text with stable ids and digests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_tasks.artifacts import Artifact, ArtifactStore, Source, digest_bytes, digest_file, digest_json
from jora_tasks.errors import InputError
from jora_tasks.progress import Progress
from jora_tasks.reading import unreadable_refused
from jora_tasks.spec import RunSpec

if TYPE_CHECKING:
    from retrieval.documents import Document

VERSION = 2
DOCUMENTS = "documents.parquet"


def build_corpus(spec: RunSpec, store: ArtifactStore, progress: Progress) -> Artifact:
    """Read the documents folder of the spec.

    The artifact holds ``documents.parquet``: document_id, source, title, text, digest and metadata, sorted
    by document_id. Its counts say what changed since the last corpus of this name.

    Raises:
      InputError: see `retrieval.documents.load_documents`.
    """
    from retrieval.documents import document_files, load_documents

    folder = Path(spec.documents.path)
    with unreadable_refused(f"documents.path {folder}"):
        files = {file.relative_to(folder).as_posix(): digest_file(file) for file in document_files(folder)}
    source = Source("documents", folder.name, digest_json(files))

    def write(target: Path) -> Mapping[str, Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        documents = load_documents(folder)
        rows: list[dict[str, Any]] = [
            {
                "document_id": document.id,
                "source": document.source,
                "title": document.title,
                "text": document.text,
                "digest": digest_bytes(document.text.encode()),
                "metadata": list(document.metadata.items()),
            }
            for document in documents
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=documents_schema()), target / DOCUMENTS)
        progress("corpus", done=len(documents), total=len(documents), unit="documents")
        return {
            "documents": len(documents),
            "characters": sum(len(document.text) for document in documents),
            **changes({row["document_id"]: row["digest"] for row in rows}, _previous(spec, store)),
        }

    return store.build("corpus", version=VERSION, settings={}, inputs={"documents": source}, write=write)


def documents_schema() -> Any:
    """Columns of ``documents.parquet``."""
    import pyarrow as pa

    names = ("document_id", "source", "title", "text", "digest")
    return pa.schema(
        [*((name, pa.string()) for name in names), ("metadata", pa.map_(pa.string(), pa.string()))]
    )


def read_documents(corpus: Artifact) -> Iterator[Document]:
    """The documents of a corpus in its order, a few at a time in memory."""
    import pyarrow.parquet as pq

    from retrieval.documents import Document

    for batch in pq.ParquetFile(corpus.file(DOCUMENTS)).iter_batches(batch_size=64):
        for row in batch.to_pylist():
            yield Document(
                row["document_id"], row["source"], row["title"], row["text"], dict(row["metadata"])
            )


def document_texts(corpus: Artifact) -> dict[str, str]:
    """Document id → text."""
    import pyarrow.parquet as pq

    table = pq.read_table(corpus.file(DOCUMENTS), columns=["document_id", "text"]).to_pydict()
    return dict(zip(table["document_id"], table["text"], strict=True))


def document_digests(corpus: Artifact) -> dict[str, str]:
    """Document id → digest of its text."""
    import pyarrow.parquet as pq

    table = pq.read_table(corpus.file(DOCUMENTS), columns=["document_id", "digest"]).to_pydict()
    return dict(zip(table["document_id"], table["digest"], strict=True))


def changes(now: Mapping[str, str], before: Mapping[str, str]) -> dict[str, int]:
    """How many documents (id → digest) were added, updated and removed, and how many were not."""
    common = now.keys() & before.keys()
    unchanged = sum(now[id_] == before[id_] for id_ in common)
    return {
        "added": len(now.keys() - before.keys()),
        "updated": len(common) - unchanged,
        "removed": len(before.keys() - now.keys()),
        "unchanged": unchanged,
    }


def _previous(spec: RunSpec, store: ArtifactStore) -> dict[str, str]:
    """Document id → digest in the last corpus of this name; empty if there is none."""
    try:
        return document_digests(store.latest(spec.name, "corpus"))
    except InputError:
        return {}
