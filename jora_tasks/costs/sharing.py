"""Records of costs where machines share artifacts: each home brings its own there, and pages read copies.

    costs/<month>/<piece>.jsonl    in the store: records of one home, in their order

A home's month goes there in pieces. The newest is written again, longer, when a stage has ended; a full one
stays as it is. So there are few to look for, and a copy of a piece lacks only what came after its end. Its
name is of its first record and of the file that this came from: neither another home nor a copy of this one
writes in its place. Nor does the file, where an older copy of it was put back: what it has lost stays in its
pieces, and others begin. A record may be in two pieces, and is one by its id.

What the store does not take waits in the home for the end of its next stage.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from jora_tasks.costs.records import month_file, months, parse
from jora_tasks.digests import digest_bytes, digest_json
from jora_tasks.errors import InputError, RunStopped
from jora_tasks.shared_store import SharedStore
from jora_tasks.writing import write_bytes, write_text

FULL = 1 << 18  # bytes from which on a piece gets no longer
_PATIENCE_SECONDS = 30.0
_AT_ONCE = 16  # pieces that are copied at a time
_PIECE = re.compile(r"[0-9a-f]{16}\.jsonl")
_MONTH = re.compile(r"\d{4}-\d\d")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Sent:
    """What a store has of a month's file.

    Attributes:
      start: where in the file the newest piece begins.
      end: where what was sent ends.
      digest: of the file up to there.
      lost: the digest that it had before another file took its place, if one did.
    """

    start: int = 0
    end: int = 0
    digest: str = ""
    lost: str = ""

    @classmethod
    def noted(cls, mark: Path) -> _Sent:
        try:
            return cls(*json.loads(mark.read_text()))
        except (OSError, ValueError, TypeError):  # none yet, or of an earlier form
            return cls()


def share(home: Path, shared: SharedStore | None) -> None:
    """Bring to the store what it lacks of a home's records; what it does not take is logged, and waits.

    Where another process of the home is about it, that one sends what came meanwhile too.
    """
    if shared is None:
        return
    try:
        for month in months(home):
            _bring(month_file(home, month), _marks(home, shared) / month, shared.within(_PATIENCE_SECONDS))
    except (InputError, RunStopped, OSError) as error:
        _log.warning("What stages cost waits in %s to be shared: %s", home, error)


def shared_months(shared: SharedStore) -> list[str]:
    """The months of which the store has records.

    Raises:
      InputError, RunStopped: if the store refuses, here and in `fetch`.
    """
    return [name for name in shared.listed("costs") if _MONTH.fullmatch(name)]


def copied_months(home: Path, shared: SharedStore) -> list[str]:
    """The months of which a home has copies of the store's records."""
    return [folder.name for folder in (home / "cache" / "costs" / _name(shared)).glob("*")]


def fetch(home: Path, shared: SharedStore, month: str, seconds: float = math.inf) -> int:
    """Copy to a home what it lacks of a month's pieces, whichever home they are from; see `copies`.

    Returns:
      How many it still lacks, since so many seconds were over.
    """
    folder, deadline = _copies(home, shared, month), time.monotonic() + seconds
    folder.mkdir(parents=True, exist_ok=True)
    known = {file.name: file.stat().st_size for file in folder.glob("*.jsonl")}
    there = {"".join(parts): size for parts, size, _ in shared.files("costs", month)}
    lacking = {
        name: size for name, size in there.items() if _PIECE.fullmatch(name) and known.get(name, -1) < size
    }

    def copy(name: str) -> bool:
        if time.monotonic() > deadline:
            return False
        if data := shared.read("costs", month, name, size=lacking[name]):
            write_bytes(folder / name, data)
        return True

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(copy, lacking)).count(False)


def copies(home: Path, shared: SharedStore, month: str) -> list[Path]:
    """The files with a month's records of all homes, as fetched last."""
    return sorted(_copies(home, shared, month).glob("*.jsonl"))


def _copies(home: Path, shared: SharedStore, month: str) -> Path:
    return home / "cache" / "costs" / _name(shared) / month


def _bring(file: Path, mark: Path, shared: SharedStore) -> None:
    """Send what the store lacks of a month's file, until nothing has come meanwhile."""
    looked = -1
    while (size := file.stat().st_size) not in (looked, _Sent.noted(mark).end):
        with _held(mark.parent) as held:
            if not held:  # whoever holds it looks again once it has let go
                return
            looked = size
            _send(file, mark, shared)


def _send(file: Path, mark: Path, shared: SharedStore) -> None:
    data, sent = file.read_bytes(), _Sent.noted(mark)
    if sent.digest and digest_bytes(data[: sent.end]) != sent.digest:  # another file than was sent
        sent = _Sent(lost=sent.digest)
    whole = data.rfind(b"\n") + 1  # what comes after it is being written
    if whole <= sent.end:
        return
    records = [line for line in data[sent.start : whole].splitlines() if parse(line)]
    if records:
        first = [records[0].decode(), socket.gethostname(), file.stat().st_ino]
        lost = [sent.lost] if sent.lost else []
        name = f"{digest_json(first + lost).removeprefix('sha256:')[:16]}.jsonl"
        shared.write(b"".join(line + b"\n" for line in records), "costs", file.stem, name)
    start = whole if whole - sent.start >= FULL else sent.start
    write_text(mark, json.dumps(astuple(_Sent(start, whole, digest_bytes(data[:whole]), sent.lost))))


def _marks(home: Path, shared: SharedStore) -> Path:
    return home / "costs" / f"shared-{_name(shared)}"


def _name(shared: SharedStore) -> str:
    return digest_bytes(shared.url.encode()).removeprefix("sha256:")[:16]


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Whether it is this process that sends: one of a home does at a time, and none waits for another."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
