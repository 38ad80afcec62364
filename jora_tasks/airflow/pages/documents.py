"""The documents of a corpus, searched by name."""

from __future__ import annotations

from pathlib import Path


def find_documents(file: Path, search: str, start: int, count: int) -> tuple[list[dict[str, str]], int]:
    """Some documents, and how many there are with ``search`` in their id or title, whatever the case.

    Args:
      file: documents.parquet of a corpus.
      search: a plain text; empty for all.

    Returns:
      Rows with ``document_id``, ``title`` and ``digest``, in the corpus's order, and the number of all.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(file, columns=["document_id", "title", "digest"])
    if search:
        hits = [
            pc.fill_null(pc.match_substring(table[column], search, ignore_case=True), False)
            for column in ("document_id", "title")
        ]
        table = table.filter(pc.or_(*hits))
    return table.slice(start, count).to_pylist(), table.num_rows
