"""How processes of a launch end: which of several tells why, and in what words."""

from __future__ import annotations

import signal

from jora_tasks.errors import DiskFull, InputError, OutOfMemory, Preempted, RunStopped

_TOLD: tuple[type[InputError | RunStopped], ...] = (InputError, OutOfMemory, DiskFull, Preempted)
_SIGNALS = {128 + number: -number for number in signal.Signals}


def signalled(code: int) -> int:
    """An exit code that is negative where a signal ended the process, also one that was told as 128 + N."""
    return _SIGNALS.get(code, code)


def rank(code: int) -> int:
    """Which of several failures tells why: bad input and the like, a stop, a kill, what came of it."""
    told = [each.exit_code for each in _TOLD]
    return told.index(code) if code in told else len(told) + (code > 0)


def ended(code: int) -> str:
    """How a process ended, as ``was ended by SIGKILL``."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def error_of(code: int, said: str) -> InputError | RunStopped | None:
    """The error that a code of its own tells of, in a process's last words; None for other codes."""
    return next((known(said) for known in _TOLD if code == known.exit_code), None)
