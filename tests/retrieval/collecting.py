"""Files of documents written and read in tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_tasks.spec import DocumentsConfig
from retrieval.collection import Tally, collect
from retrieval.documents import Document, Unreadable
from retrieval.files import local_files


@dataclass
class Read:
    """What a folder gave."""

    documents: list[Document]
    unreadable: list[Unreadable]
    tally: Tally

    @property
    def by_id(self) -> dict[str, Document]:
        return {document.id: document for document in self.documents}

    @property
    def reasons(self) -> list[str]:
        return [each.reason for each in self.unreadable]


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(folder: Path, **settings: Any) -> Read:
    """Collect a folder's documents with these settings of documents."""
    config = DocumentsConfig.model_validate({"path": str(folder), **settings})
    tally, unreadable = Tally(), list[Unreadable]()
    documents = list(collect(local_files(folder), config, tally, unreadable.append))
    return Read(documents, unreadable, tally)
