"""The text of a PDF, page by page."""

from __future__ import annotations

import logging
from typing import BinaryIO

from jora_tasks.errors import InputError
from jora_tasks.spec import DocumentsConfig
from retrieval.loaders.text import first_line


def read_pdf(stream: BinaryIO, source: str, config: DocumentsConfig) -> tuple[str, str]:
    """Title and text, pages apart by a blank line.

    A scanned page has no text; a PDF of such pages alone is an empty document.

    Raises:
      InputError: for a damaged or encrypted file.
    """
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what it mends by itself is no news
    page = 0
    try:
        reader = PdfReader(stream)
        if reader.is_encrypted and not reader.decrypt(""):
            raise InputError(f"{source} is encrypted; save it without a password.")
        pages, room = list[str](), config.max_file_mib << 20
        for each in reader.pages:
            page += 1
            pages.append(_characters(each.extract_text()))
            room -= len(pages[-1])
            if room < 0:
                raise InputError(
                    f"{source} has more than {config.max_file_mib} MiB of text; split it, or raise "
                    "documents.max_file_mib."
                )
        title = _characters(str((reader.metadata and reader.metadata.title) or ""))
    except InputError:
        raise
    except Exception as error:  # a hostile PDF makes the parser fail in any way
        where = f" page {page}" if page else ""
        raise InputError(
            f"{source}{where} is not a PDF that can be read ({_words(error)}); print it to a new PDF."
        ) from None
    text = "\n\n".join(page for page in pages if page.strip())
    return " ".join(title.split()) or first_line(text), text


def _characters(text: str) -> str:
    """Text without what broken fonts bring: zero characters and halves of surrogate pairs."""
    return text.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:200].rstrip(". ")
