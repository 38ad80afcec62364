"""The documents of many files as one stream: each id once, what is left out counted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from jora_tasks.errors import InputError
from jora_tasks.spec import DocumentsConfig
from retrieval.documents import Document, Unreadable
from retrieval.files import SourceFile, load_file
from retrieval.page_cache import PageCache


@dataclass
class Tally:
    """Counts of a collection, right once its stream has ended.

    Attributes:
      files: read so far.
      documents: given.
      characters: of their texts.
      empty: documents without text, left out.
      duplicates: documents with the text of an earlier one, kept or dropped.
      unreadable: files and rows that gave no document.
    """

    files: int = 0
    documents: int = 0
    characters: int = 0
    empty: int = 0
    duplicates: int = 0
    unreadable: int = 0


def collect(
    files: Iterable[SourceFile],
    config: DocumentsConfig,
    tally: Tally,
    tell: Callable[[Unreadable], None] = lambda unreadable: None,
    cache: PageCache | None = None,
) -> Iterator[Document]:
    """The documents of the files in their order, then that of their rows; one at a time in memory.

    Args:
      tally: counts while documents are taken.
      tell: called for each file or row that gave no document.
      cache: knows what costly files were read as before.

    Raises:
      InputError: for what cannot be read, and an id given again, if ``documents.unreadable`` is error; and at
        the end, if no document has text.
    """
    places: dict[str, str] = {}
    texts: set[bytes] = set()
    first = ""
    for file in files:
        for loaded in load_file(file, config, cache):
            if not isinstance(loaded, Unreadable) and (twin := places.get(loaded[0].id)):
                document, place = loaded
                loaded = Unreadable(
                    document.source,
                    f"{place}: document id {document.id!r} is that of {twin}; give each document its own id.",
                )
            if isinstance(loaded, Unreadable):
                first = first or loaded.reason
                if config.unreadable == "error":
                    raise InputError(loaded.reason)
                tally.unreadable += 1
                tell(loaded)
                continue
            document, place = loaded
            if not document.text.strip():
                tally.empty += 1
                continue
            places[document.id] = place
            text = hashlib.sha256(document.text.encode()).digest()
            if text in texts:
                tally.duplicates += 1
                if config.duplicates == "drop":
                    continue
            texts.add(text)
            tally.documents += 1
            tally.characters += len(document.text)
            yield document
        tally.files += 1
    if not tally.documents and first:
        raise InputError(f"documents.path {config.path} holds no document that can be read: {first}")
    if not tally.documents:
        raise InputError(f"The documents in {config.path} are all empty; give documents with text.")
