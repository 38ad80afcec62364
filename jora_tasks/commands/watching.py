"""How a command shows what its stages are doing."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from jora_tasks.progress import FileSink, LineSink, Progress, RichSink, Sink


@contextlib.contextmanager
def shown_events(as_json: bool) -> Iterator[Sink]:
    """Bars on a terminal, lines anywhere else."""
    if sys.stderr.isatty() and not as_json:
        with RichSink() as bars:
            yield bars
    else:
        yield LineSink()


@contextlib.contextmanager
def shown_progress(as_json: bool) -> Iterator[Progress]:
    """Progress that is shown, and appended to the file that ``$JORA_PROGRESS`` names."""
    with shown_events(as_json) as sink:
        file = os.environ.get("JORA_PROGRESS")
        yield Progress(sink, FileSink(file)) if file else Progress(sink)
