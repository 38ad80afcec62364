"""Documents that start a run when they change: a folder or object store prefix, looked at again and again.

A snapshot of the documents is told of once, and once only, also after a restart: which one was told of last
is kept on disk, by the path that is watched, before the event goes out. Should Airflow be killed within that
moment, the next change or the daily run makes up for it. The snapshot that is found first is the one to
compare with and starts nothing: no run merely because Airflow was installed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, AssetWatcher
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from jora_tasks.airflow.params import SPEC_VARIABLE, base_spec
from jora_tasks.artifacts import jora_home
from jora_tasks.errors import InputError, RunStopped
from jora_tasks.spec import is_url
from jora_tasks.variables import number_of
from jora_tasks.writing import write_text
from retrieval.snapshot import snapshot

SECONDS = "JORA_WATCH_SECONDS"
"""Environment variable: seconds between two looks at the documents, 30 by default; 0 does not watch."""

_DEFAULT_SECONDS = 30.0


class DocumentsTrigger(BaseEventTrigger):
    """Fires when the documents have changed and then stayed as they are from one look to the next.

    Args:
      path: folder, file or URL of the documents, as in ``documents.path``.
      seconds: between two looks.
    """

    def __init__(self, path: str, seconds: float = _DEFAULT_SECONDS) -> None:
        super().__init__()
        self.path = path
        self.seconds = seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (f"{__name__}.{type(self).__name__}", {"path": self.path, "seconds": self.seconds})

    async def run(self) -> AsyncIterator[TriggerEvent]:
        file = told_file(jora_home(), self.path)
        before = trouble = ""
        while True:
            try:
                now = await asyncio.to_thread(snapshot, self.path)
            except (InputError, RunStopped, OSError) as error:  # a share that is away for a while, say
                now = ""
                if trouble != str(error):
                    trouble = str(error)
                    self.log.warning("Documents cannot be looked at: %s", trouble)
            if now and now == before:  # no one is still copying
                told = told_snapshot(file)
                if now != told:
                    await asyncio.to_thread(_tell, file, self.path, now)
                    if told:
                        yield TriggerEvent({"snapshot": now, "before": told})
            before = now
            await asyncio.sleep(self.seconds)


def watched_documents() -> Asset | None:
    """The documents of ``$JORA_SPEC`` as an asset whose events start a DAG; None where none are watched."""
    seconds = number_of(SECONDS, _DEFAULT_SECONDS)
    if seconds <= 0 or not os.environ.get(SPEC_VARIABLE):
        return None
    path = base_spec().documents.path
    uri = path if is_url(path) else Path(path).absolute().as_uri()
    watcher = AssetWatcher(name="documents", trigger=DocumentsTrigger(path, seconds))
    return Asset(name="documents", uri=uri, group="sources", watchers=[watcher])


def told_file(home: Path, path: str) -> Path:
    """Where the last snapshot of this path that was told of is kept."""
    return home / "watch" / f"{hashlib.sha256(path.encode()).hexdigest()[:16]}.json"


def told_snapshot(file: Path) -> str:
    """The last snapshot told of; empty before the first."""
    try:
        return str(json.loads(file.read_text())["snapshot"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _tell(file: Path, path: str, now: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({"path": path, "snapshot": now}) + "\n")
