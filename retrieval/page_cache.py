"""What PDF and Word files were read as before, so that a corpus costs what has changed."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

from retrieval.sqlite import CacheFile

_PAGES = "pages"


class PageCache:
    """One file: digest of a file and of how it is read → title and text. Made for the first text.

    What was added is there after a kill; deleting the file costs only the time to read again.

    Raises:
      InputError: if the file is no such cache, here and in each method.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._opened = CacheFile(file, [_PAGES]) if file.exists() else None

    def __enter__(self) -> PageCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened:
            self._opened.close()

    def get(self, key: bytes) -> tuple[str, str] | None:
        """Title and text, if they are known."""
        if self._opened is None:
            return None
        for _, value in self._opened.get(_PAGES, [key]):
            title, text = json.loads(value)
            return title, text
        return None

    def add(self, key: bytes, title: str, text: str) -> None:
        self._opened = self._opened or CacheFile(self._file, [_PAGES])
        self._opened.add(_PAGES, [(key, json.dumps([title, text]).encode())])
