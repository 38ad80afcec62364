"""OpenLineage's transport of this project: every event goes to a file, and from there to a server by setting.

The file is the outbox. With ``$OPENLINEAGE_URL`` each new event first brings those that are waiting: in their
order, each once, by one process at a time. A server that does not answer costs nothing but a later try, with
the next event or the next run. An event that the server calls invalid is put aside, and the rest goes on.
A kill between the server's answer and the note of it sends that event again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attr
from openlineage.client.serde import Serde
from openlineage.client.transport.transport import Config, Transport

from jora_tasks.artifacts import jora_home
from jora_tasks.digests import digest_bytes
from jora_tasks.lineage import events_file
from jora_tasks.writing import write_text

URL, ENDPOINT, API_KEY = "OPENLINEAGE_URL", "OPENLINEAGE_ENDPOINT", "OPENLINEAGE_API_KEY"
_TIMEOUT_SECONDS = 5.0  # of one event
_LONGEST_SECONDS = 20.0  # of one call that sends what waits; the next goes on
RETRY_SECONDS = 30.0
_INVALID = (400, 413, 422)  # what no second try would mend

_log = logging.getLogger(__name__)


@attr.define
class OutboxConfig(Config):
    """``log_file_path``: the outbox, by default that of ``$JORA_HOME``; ``retry_seconds`` after a failure."""

    log_file_path: str = ""
    retry_seconds: float = RETRY_SECONDS

    @classmethod
    def from_dict(cls, params: dict[str, Any]) -> OutboxConfig:
        return cls(params.get("log_file_path", ""), float(params.get("retry_seconds", RETRY_SECONDS)))


class OutboxTransport(Transport):
    """For ``AIRFLOW__OPENLINEAGE__TRANSPORT``: ``{"type": "jora_tasks.outbox.OutboxTransport"}``."""

    kind = "outbox"
    config_class = OutboxConfig

    def __init__(self, config: OutboxConfig) -> None:
        self._config = config

    def emit(self, event: Any) -> None:
        """Keep an event, then send what waits; no server's failure is this caller's.

        Raises:
          OSError: if the event cannot be kept.
        """
        file = Path(self._config.log_file_path or events_file(jora_home()))
        append(file, Serde.to_json(event))
        if url := os.environ.get(URL):
            send(file, url, self._config.retry_seconds)


def append(file: Path, line: str) -> None:
    """Add one line; one that a killed writer left half is ended first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as outbox, _held(file.with_suffix(".writing")):
        half = outbox.seek(0, os.SEEK_END) > 0 and not _ends_whole(file)
        outbox.write((b"\n" if half else b"") + line.encode() + b"\n")
        outbox.flush()


def send(file: Path, url: str, retry_seconds: float = RETRY_SECONDS) -> int:
    """Send what waits in an outbox, in order, until it is empty, a try fails or 20 s are over.

    Args:
      file: the outbox.
      url: of the server; ``$OPENLINEAGE_ENDPOINT`` and ``$OPENLINEAGE_API_KEY`` mean what they mean to
        OpenLineage's client.
      retry_seconds: after a failure, for so long no one tries again.

    Returns:
      How many events the server took.
    """
    place = file.with_name(f"{file.name}.sent-{digest_bytes(url.encode())[7:23]}")
    failed = place.with_name(f"{place.name}.failed")
    deadline, taken = time.monotonic() + _LONGEST_SECONDS, 0
    while not _recent(failed, retry_seconds) and _waiting(file, place) and time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError), _held(file.with_suffix(".sending"), wait=False):
            try:
                for line, end in _lines(file, _offset(file, place)):
                    taken += _post(url, line, file)
                    write_text(place, str(end))
                    if time.monotonic() >= deadline:
                        break
                failed.unlink(missing_ok=True)
            except _Unreachable as error:
                failed.touch()
                _log.warning("OpenLineage events wait in %s and are sent later: %s", file, error)
                break
            continue
        break  # another process is sending, and takes this process's events with its own
    return taken


class _Unreachable(Exception):
    """The server did not take an event, and may at another time."""


def _post(url: str, line: bytes, file: Path) -> bool:
    """Whether the server took the event; one that it calls invalid is put aside."""
    import httpx

    address = f"{url.rstrip('/')}/{os.environ.get(ENDPOINT, 'api/v1/lineage').lstrip('/')}"
    key = os.environ.get(API_KEY)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        json.loads(line)
    except ValueError:  # half a line of a killed writer
        return False
    try:
        answer = httpx.post(address, content=line, headers=headers, timeout=_TIMEOUT_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _Unreachable(type(error).__name__) from None
    if answer.status_code in _INVALID:
        _log.warning("The OpenLineage server refused an event with %d.", answer.status_code)
        append(file.with_suffix(".refused.jsonl"), line.decode())
        return False
    if not answer.is_success:
        raise _Unreachable(f"status {answer.status_code}")
    return True


def _lines(file: Path, offset: int) -> Iterator[tuple[bytes, int]]:
    """Whole lines from an offset on, each with the offset of its end."""
    with file.open("rb") as outbox:
        outbox.seek(offset)
        for line in outbox:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            if line.strip():
                yield line.strip(), offset


def _offset(file: Path, place: Path) -> int:
    """Where what waits begins: at the start of an outbox shorter than what was sent, which is another one."""
    try:
        offset = int(place.read_text())
    except (OSError, ValueError):
        return 0
    return offset if offset <= file.stat().st_size else 0


def _waiting(file: Path, place: Path) -> bool:
    return next(_lines(file, _offset(file, place)), None) is not None


def _recent(mark: Path, seconds: float) -> bool:
    """Whether a file was touched so many seconds ago or less, or the clock was set back since."""
    try:
        return abs(time.time() - mark.stat().st_mtime) < seconds
    except OSError:
        return False


def _ends_whole(file: Path) -> bool:
    with file.open("rb") as outbox:
        outbox.seek(-1, os.SEEK_END)
        return outbox.read() == b"\n"


@contextlib.contextmanager
def _held(lock: Path, wait: bool = True) -> Iterator[None]:
    """The kernel's lock on a file, which ends with its holder."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
