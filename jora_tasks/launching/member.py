"""One process of a launch, on its host: ``python -m jora_tasks.launching.member``; see `launcher`.

It reads from stdin what to run, so that no secret lies on a command line or in a file, and says so on stderr.
Then it hears there whether to go on: a line now and then, ``stop``, or ``kill``. Where stdin ends, or is
silent for long, the launcher or the way to it is gone, and the trainer is stopped, saved.

In a pod of a Job, ``python -m jora_tasks.launching.member FILE``, what to run is the file's first line, and
SIGTERM stops the trainer, saved.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from io import RawIOBase
from pathlib import Path
from typing import Any

from jora_tasks.errors import InputError
from jora_tasks.launching.settings import LAUNCHER, SETTINGS
from jora_tasks.trainer.group import group_of

LAUNCHED = "JORA_LAUNCHED"
"""Set for processes of a launch: who launched them tells of their stage."""

STOP, KILL, GO_ON = b"stop\n", b"kill\n", b"\n"
STARTED = "[member] has read what to run"
"""Its first line, for the launcher alone: from here on the member tells how it ends."""
BEAT_SECONDS, SILENCE_SECONDS = 5.0, 60.0
GRACE_SECONDS = 8.0
"""From SIGTERM, at which a trainer saves its state, to SIGKILL, where no one is there to ask for it."""

_POLL_SECONDS = 0.1


class Ears:
    """What the launcher has said last."""

    def __init__(self, stream: RawIOBase) -> None:
        self.asked, self.killed, self._ended, self._heard = False, False, False, time.monotonic()
        threading.Thread(target=self._listen, args=(stream,), daemon=True).start()

    def _listen(self, stream: RawIOBase) -> None:
        while line := stream.readline():
            self._heard = time.monotonic()
            self.asked |= line == STOP
            self.killed |= line == KILL
        self._ended = True

    def alone(self) -> bool:
        """Whether no one is there any more who could say something."""
        return self._ended or time.monotonic() - self._heard > SILENCE_SECONDS


class _Signals:
    """What Kubernetes has said: SIGTERM to a container's first process; it kills by itself."""

    asked = killed = False

    def alone(self) -> bool:
        return False


def main() -> None:
    """Run what stdin or a file says and end as it ends; 128 + N where signal N ended it."""
    signals = _Signals()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A scheduler that signals a job reaches the trainer itself; a second SIGTERM would kill it. Not
        # SIG_IGN, which the trainer would inherit.
        signal.signal(number, lambda number, frame: setattr(signals, "asked", True))
    in_pod = len(sys.argv) > 1
    # A thread reads it to the end, and may hold no lock then.
    heard = open(sys.argv[1] if in_pod else 0, "rb", buffering=0)  # noqa: SIM115, PTH123
    try:
        told = told_of(heard.readline())
        own = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        environment = told.get("defaults", {}) | own | told["environment"] | {LAUNCHED: "1"}
        with contextlib.suppress(OSError):
            os.write(sys.stderr.fileno(), f"{STARTED}\n".encode())
        group = group_of(environment)
    except InputError as error:
        print(f"jora: {error}", file=sys.stderr, flush=True)  # noqa: T201
        sys.exit(error.exit_code)
    place = group.process if group else 0
    if place:
        environment.pop("JORA_PROGRESS", None)  # the first process tells what all are doing
    with contextlib.suppress(OSError):
        os.chdir(told["folder"])
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "spec.yaml")
        spec.write_text(told["spec"])
        ears = signals if in_pod else Ears(heard)
        code = _run([*told["arguments"], "--spec", str(spec)], environment, place, ears)
    sys.exit(code if code >= 0 else 128 - code)


def told_of(line: bytes) -> dict[str, Any]:
    """What a launcher tells in its first line.

    Raises:
      InputError: if it is something else.
    """
    try:
        told: dict[str, Any] = json.loads(line)
    except ValueError:
        raise InputError(
            f"{LAUNCHER} must pass its stdin on, from the first line: what to run comes there."
        ) from None
    return told


def _run(arguments: list[str], environment: Mapping[str, str], place: int, ears: Ears | _Signals) -> int:
    own = [sys.executable, "-m", "jora_tasks.leash", str(os.getpid()), sys.executable, "-m", "jora_tasks.cli"]
    child = subprocess.Popen(
        [*own, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        process_group=0,
        close_fds=False,  # the lock of a detached job is held until its last process ends
    )
    relay = threading.Thread(target=_relay, args=(child.stderr, place), daemon=True)
    relay.start()
    signalled = 0.0
    while child.poll() is None:
        alone, now = ears.alone(), time.monotonic()
        if (ears.asked or alone) and not signalled:
            _signal(child.pid, signal.SIGTERM)
            signalled = now
        if ears.killed or (alone and signalled and now - signalled > GRACE_SECONDS):
            _signal(child.pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    _signal(child.pid, signal.SIGKILL)  # what it left behind in its group
    relay.join(GRACE_SECONDS)
    return child.returncode


def _relay(stream: Any, place: int) -> None:
    """Pass each line on with the process's number; read on where no one takes them any more."""
    for line in stream:
        with contextlib.suppress(OSError):
            os.write(sys.stderr.fileno(), b"[%d] %s\n" % (place, line.rstrip(b"\n")))


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    main()
