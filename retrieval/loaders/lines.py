"""The lines of a text file, none longer than a bound."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

from jora_tasks.spec import DocumentsConfig
from retrieval.loaders.encoding import text_encoding, undecodable

_SKIPPED = 1 << 20  # characters of an over-long line read at once


def bounded_lines(
    stream: BinaryIO, source: str, config: DocumentsConfig, newline: str | None = None
) -> Iterator[str | None]:
    """Each line with its end; None for one of more characters than ``documents.max_file_mib`` MiB.

    Args:
      newline: as `open` has it.

    Raises:
      InputError: if the encoding is not known, or not that of the whole file.
    """
    codec = text_encoding(stream, source, config)
    text = io.TextIOWrapper(stream, encoding=codec, newline=newline)
    longest = config.max_file_mib << 20
    try:
        while line := text.readline(longest):
            if len(line) < longest or line.endswith(("\n", "\r")):
                yield line
                continue
            while line and not line.endswith(("\n", "\r")):
                line = text.readline(_SKIPPED)
            yield None
    except UnicodeDecodeError as error:
        raise undecodable(source, codec, error) from None
    finally:
        text.detach()  # the stream is its opener's to close
