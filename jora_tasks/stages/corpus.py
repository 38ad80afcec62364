"""Documents → corpus: normalised text with stable ids and digests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_tasks.artifacts import Artifact, ArtifactStore, Source
from jora_tasks.digests import digest_file, digest_json
from jora_tasks.errors import InputError, RunStopped
from jora_tasks.progress import Progress
from jora_tasks.spec import DocumentsConfig, RunSpec, is_url
from jora_tasks.tables import TableWriter

if TYPE_CHECKING:
    from retrieval.documents import Document
    from retrieval.files import SourceFile
    from retrieval.page_cache import PageCache

VERSION = 4
DOCUMENTS = "documents.parquet"
UNREADABLE = "unreadable.parquet"
_TOLD_EVERY = 0.2  # seconds
_REASONS_SHOWN = 3


def build_corpus(spec: RunSpec, store: ArtifactStore, progress: Progress) -> Artifact:
    """Read the documents of the spec, one at a time.

    The artifact holds ``documents.parquet`` (document_id, source, title, text, digest, metadata; in
    the order of files by path, then of their rows) and ``unreadable.parquet`` (source, reason), what
    gave no document. Its counts are those of `retrieval.collection.Tally`, and what changed since the
    last corpus of this name.

    Raises:
      InputError: see `retrieval.files.local_files`, `retrieval.remote.remote_files` and
        `retrieval.collection.collect`.
      RunStopped: if a file changed while it was read.
    """
    from retrieval.page_cache import PageCache

    with _files(spec.documents, store, progress) as files:
        before = {file.name: file.state() for file in files}
        source = Source("documents", Path(spec.documents.path).name, _digest(files))

        def write(target: Path) -> Mapping[str, Any]:
            with PageCache(_cache(store) / "pages.sqlite") as cache:
                counts, digests = _write(target, files, spec.documents, cache, progress)
            changed = [file.name for file in files if file.state() != before[file.name]]
            if changed:
                raise RunStopped(f"documents.path: {changed[0]} changed while it was read; run this again.")
            return counts | changes(digests, _previous(spec, store))

        corpus = store.build(
            "corpus",
            version=VERSION,
            settings=spec.documents.making(),
            inputs={"documents": source},
            write=write,
        )
    if not corpus.reused:
        return corpus
    if spec.documents.unreadable == "error" and corpus.counts["unreadable"]:
        raise InputError(_reasons(corpus)[0])
    # the changes in its manifest are those since the corpus that was the last one then
    return corpus.recounted(changes(document_digests(corpus), _previous(spec, store)))


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
    """Document id → digest of all that later stages read of it."""
    import pyarrow.parquet as pq

    table = pq.read_table(corpus.file(DOCUMENTS), columns=["document_id", "digest"]).to_pydict()
    return dict(zip(table["document_id"], table["digest"], strict=True))


@contextlib.contextmanager
def _files(config: DocumentsConfig, store: ArtifactStore, progress: Progress) -> Iterator[list[SourceFile]]:
    """The files of documents, on this machine as long as the block lasts."""
    from retrieval.files import local_files
    from retrieval.remote import remote_files

    if not is_url(config.path):
        yield local_files(Path(config.path))
        return

    def told(done: int, total: int) -> None:
        progress("corpus", done=done, total=total, unit="files fetched")

    with remote_files(config.path, _cache(store), told) as files:
        yield files


def _cache(store: ArtifactStore) -> Path:
    return store.home / "cache" / "documents"


def _digest(files: list[SourceFile]) -> str:
    """Of the names and contents; a file that cannot be read counts by what is wrong with it."""

    def content(file: SourceFile) -> str:
        try:
            return file.problem or digest_file(file.path)
        except OSError as error:
            return f"unreadable: {error.strerror}"

    return digest_json({file.name: content(file) for file in files})


def _write(
    target: Path, files: list[SourceFile], config: DocumentsConfig, cache: PageCache, progress: Progress
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write both tables; the counts, and document id → digest."""
    import pyarrow as pa

    from retrieval.collection import Tally, collect
    from retrieval.documents import Unreadable, document_digest

    tally, reasons, digests = Tally(), list[str](), dict[str, str]()
    told = 0.0
    unreadable_schema = pa.schema([("source", pa.string()), ("reason", pa.string())])
    with (
        TableWriter(target / DOCUMENTS, documents_schema()) as documents,
        TableWriter(target / UNREADABLE, unreadable_schema) as unreadable,
    ):

        def report(found: Unreadable) -> None:
            unreadable.add(asdict(found))
            if len(reasons) < _REASONS_SHOWN:
                reasons.append(found.reason)

        for document in collect(files, config, tally, report, cache):
            digests[document.id] = document_digest(document)
            documents.add(
                {
                    "document_id": document.id,
                    "source": document.source,
                    "title": document.title,
                    "text": document.text,
                    "digest": digests[document.id],
                    "metadata": list(document.metadata.items()),
                },
                len(document.text),
            )
            if time.monotonic() - told > _TOLD_EVERY:
                told = time.monotonic()
                progress(
                    "corpus", done=tally.files, total=len(files), unit="files", documents=tally.documents
                )
    progress("corpus", done=tally.files, total=len(files), unit="files", documents=tally.documents)
    return asdict(tally) | ({"first_unreadable": reasons} if reasons else {}), digests


def _reasons(corpus: Artifact) -> list[str]:
    import pyarrow.parquet as pq

    return pq.read_table(corpus.file(UNREADABLE), columns=["reason"]).to_pydict()["reason"]


def _previous(spec: RunSpec, store: ArtifactStore) -> dict[str, str]:
    """Document id → digest in the last corpus of this name; empty if there is none."""
    try:
        return document_digests(store.latest(spec.name, "corpus"))
    except InputError:
        return {}


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
