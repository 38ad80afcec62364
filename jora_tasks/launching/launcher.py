"""Runs a training in several processes at once, to the end of all of them.

Each is a `member` that the launch's commands start on its host. What it is to run, and the environment, go to
its stdin; its stderr comes back, line by line with the process's number. The first line says that it has
started; before that, what happens is the launch's command's doing. One process that fails ends all, and
so does the end of the launcher, however it ends: on other hosts too nothing is left running.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from jora_tasks.errors import InputError, Preempted, RunStopped
from jora_tasks.launching.book import WORDS, Book
from jora_tasks.launching.endings import ended, error_of, rank, signalled
from jora_tasks.launching.member import BEAT_SECONDS, GO_ON, GRACE_SECONDS, KILL, STARTED, STOP
from jora_tasks.launching.settings import LAUNCHER, TRAINING_JOB, Launch, Start

LOGS = "JORA_PROCESS_LOGS"
"""Folder of the processes' logs, ``process-0.log`` and so on."""

MEMBER = (sys.executable, "-m", "jora_tasks.launching.member")
PODS = (sys.executable, "-m", "jora_tasks.launching.pods")
"""What starts all processes as pods of a Job, and is to the launcher what `srun` is."""

# Who saves its state may be in an update that takes long; any other failure reaches all of them soon, and
# those that it does not reach wait for nothing. Where none has started there is nothing to save.
_SETTLE_SAVING, _SETTLE_SECONDS, _SETTLE_UNSTARTED = 120.0, 10.0, 5.0
# A command that starts one process leads to a host, and those that have started wait for it no longer than
# this; one that starts all may stand in a scheduler's queue for days.
_START_SECONDS = 300.0
_WAITING_SECONDS = 60.0
_REAP_SECONDS = 5.0
_POLL_SECONDS = 0.1


def run_together(
    launch: Launch,
    arguments: Sequence[str],
    spec: str,
    environment: Mapping[str, str],
    logs: Path,
    report: Callable[[str], None],
    name: str = "",
) -> None:
    """Run a `jora` command in every process of a launch.

    SIGTERM to this process stops them, saved. Called in the main thread, which alone can hear of it.

    Args:
      arguments: of the command, without its ``--spec``.
      spec: the settings as YAML, which every process gets as a file of its own.
      environment: what the launch takes the processes' variables from.
      logs: folder that gets a log of each process; lines are added to what is there.
      report: gets each line, as ``[1] train 3/10 steps``.
      name: of what is made, the same in every try; what a killed try left elsewhere is known by it.

    Raises:
      InputError: if the launcher cannot be run or does not start its process, or as a process ended.
      RunStopped: as a process ended: out of memory, without room, preempted, or failed otherwise.
    """
    logs.mkdir(parents=True, exist_ok=True)
    book = Book(logs, report)
    told = {"name": name, "arguments": list(arguments), "spec": spec, "folder": str(Path.cwd())}
    by_job = launch.setting == TRAINING_JOB
    processes: list[_Process] = []
    with book, _asked_by_sigterm() as asked:
        try:
            for start in launch.starts(PODS if by_job else MEMBER):
                variables = launch.variables(environment) | dict(start.group)
                processes.append(_Process(start, told | {"environment": variables}, book))
            _watch(processes, asked, book, "" if by_job else f"; {LAUNCHER} must pass its stdin on")
        finally:
            _end(processes)
    if failed := [process for process in processes if process.failed()]:
        first = min(failed, key=lambda each: (asked() and not each.started, _rank(each)))
        raise _error(first, book, by_job, stopped=asked())
    if any(process.killed for process in processes):
        raise _stopped(processes)


class _Process:
    """One command of the launch."""

    def __init__(self, start: Start, told: Mapping[str, object], book: Book) -> None:
        self.start, self.killed, self.started = start, False, False
        book.tell(f"started by {' '.join(start.words)}", start.process)
        try:
            self._popen = subprocess.Popen(
                start.words,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # who signals the launcher's group leaves it to the launcher
                close_fds=False,  # the lock of a detached job is held until its last process ends
            )
        except OSError as error:
            raise InputError(
                f"{LAUNCHER} begins with {start.words[0]}, which cannot be run here "
                f"({error.strerror}); correct or install it."
            ) from None
        self.say(json.dumps(told).encode() + b"\n")
        self._reader = threading.Thread(target=self._read, args=(book,), daemon=True)
        self._reader.start()

    @property
    def code(self) -> int | None:
        """Exit code, None while it runs; negative where a signal ended it, on its host too."""
        code = self._popen.poll()
        return None if code is None else signalled(code)

    def failed(self) -> bool:
        """Whether it ended by itself, and not as it should: a start that came to nothing may end well."""
        if self.killed or self.code is None:
            return False
        return self.code != 0 or not (self.started or self._reader.is_alive())

    def say(self, line: bytes) -> None:
        assert self._popen.stdin  # noqa: S101 a pipe
        with contextlib.suppress(OSError, ValueError):  # it has ended, or is being ended
            self._popen.stdin.write(line)
            self._popen.stdin.flush()

    def hang_up(self) -> None:
        assert self._popen.stdin  # noqa: S101 a pipe
        with contextlib.suppress(OSError):
            self._popen.stdin.close()

    def kill(self) -> None:
        """End the command here; where it leads to another host, the member there ends by itself."""
        if self._popen.poll() is None:  # the number of one that has ended may be another's by now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()

    def finish_reading(self) -> None:
        self._reader.join(_REAP_SECONDS)

    def _read(self, book: Book) -> None:
        for line in self._popen.stderr or ():
            said = line.decode("utf-8", "replace").rstrip()
            if said.endswith(STARTED):  # whatever the launcher puts before each line
                self.started = True
            else:
                book.add(said, self.start.process)


def _watch(processes: list[_Process], asked: Callable[[], bool], book: Book, hint: str) -> None:
    """Wait for the end of all; one that fails or does not start, or SIGTERM, brings it about.

    Args:
      hint: for those who wonder why a process does not start.
    """
    begun, beat = time.monotonic(), 0.0
    patience = begun + _WAITING_SECONDS
    stop = failure = None  # since when, and how long that may take
    while running := [process for process in processes if process.code is None]:
        now = time.monotonic()
        if now >= beat:
            beat = now + BEAT_SECONDS
            for process in running:
                process.say(GO_ON)
        if asked() and not stop:
            stop = now, _SETTLE_SAVING
            for process in running:
                process.say(STOP)
        if not failure and (codes := [process.code or 0 for process in processes if process.failed()]):
            failure = now, _settle(codes[0])
        if not (stop or failure) and (waiting := [each for each in running if not each.started]):
            if waiting[0].start.process is not None and now > begun + _START_SECONDS:
                raise _unheard(waiting[0].start)
            if now > patience:
                patience = now + _WAITING_SECONDS
                for process in waiting:
                    book.tell(f"waiting for {_what(process.start)} to start{hint}", process.start.process)
        most = _SETTLE_SAVING if any(process.started for process in running) else _SETTLE_UNSTARTED
        if any(now > since + min(settle, most) for since, settle in filter(None, (stop, failure))):
            for process in running:
                process.killed = True
                process.say(KILL)
            return
        time.sleep(_POLL_SECONDS)


def _settle(code: int) -> float:
    """How long the others may go on after one has ended with this code."""
    if code == Preempted.exit_code:
        return _SETTLE_SAVING
    return 0 if code < 0 and code != -signal.SIGTERM else _SETTLE_SECONDS


def _end(processes: list[_Process]) -> None:
    """Let no process outlive this; those that run save their state, if they can in time."""
    for process in processes:
        process.hang_up()
    patience = GRACE_SECONDS if not any(process.killed for process in processes) else 0
    deadline = time.monotonic() + patience + _REAP_SECONDS
    while any(process.code is None for process in processes) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    for process in processes:
        process.kill()
        process.finish_reading()


def _rank(process: _Process) -> int:
    return rank(process.code or 0) if process.started else 0


def _error(process: _Process, book: Book, by_job: bool, stopped: bool) -> InputError | RunStopped:
    code, start = process.code or 0, process.start
    line = book.last.get(start.process, "")
    said = line.removeprefix(WORDS)
    if code == -signal.SIGTERM or (stopped and not process.started):
        return _stopped([process])
    if not process.started:
        if by_job or (code == InputError.exit_code and said != line):  # what it was told it could not use
            return error_of(code, said) or RunStopped(said)
        kind = RunStopped if code < 0 else InputError
        words = f": {said}" if said else ", without a word"
        where = f"before {_what(start)} had started"
        return kind(f"{LAUNCHER}'s command {start.words[0]} {ended(code)} {where}{words}; correct it.")
    if known := error_of(code, said):
        return known
    which = _what(start)
    how = said if by_job else f"{which[0].upper()}{which[1:]} {ended(code)}: {said}"
    return RunStopped(f"{how} (logs in {book.folder}); the next run goes on from its last checkpoint.")


def _stopped(processes: Sequence[_Process]) -> Preempted:
    if any(process.started for process in processes):
        return Preempted("stopped by SIGTERM; started again, it goes on from its last checkpoint.")
    return Preempted("stopped by SIGTERM before its processes had started.")


def _unheard(start: Start) -> InputError:
    return InputError(
        f"{LAUNCHER} must pass its stdin on and stderr back: within {_START_SECONDS:.0f} s nothing was heard "
        f"of {_what(start)}; correct it."
    )


def _what(start: Start) -> str:
    return "the launched training" if start.process is None else f"process {start.process} on {start.host}"


@contextlib.contextmanager
def _asked_by_sigterm() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGTERM into a request; the second does what it did before.

    Only the main thread may handle signals; in any other the request never comes.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)
