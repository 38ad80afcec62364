"""The errors that end a command with one sentence and an exit code of their own."""

import errno
from collections.abc import Iterator
from pathlib import Path


class InputError(ValueError):
    """Bad input: a setting, a file or a folder that the user can mend.

    The message is one sentence that names the field or file and the remedy. Commands print it
    alone, without a traceback, and exit with code 2; nothing has been written by then.
    """

    exit_code = 2


class RunStopped(RuntimeError):
    """A run that ended before its time, for a reason its one sentence tells; its checkpoints are good.

    Commands print the sentence alone and exit with `exit_code`.
    """

    exit_code = 1


class Preempted(RunStopped):
    """The run was asked to stop by SIGTERM and saved its state; started again, it goes on from there."""

    exit_code = 75  # EX_TEMPFAIL of <sysexits.h>: try again


class OutOfMemory(RunStopped):
    """The device or the host has not enough memory; a smaller run may fit, the same one will not."""

    exit_code = 12  # ENOMEM of <errno.h>


class DiskFull(RunStopped):
    """No room was left on a disk; once there is some, the same run goes on from what is done."""

    exit_code = 28  # ENOSPC of <errno.h>


class DeviceBusy(RunStopped):
    """Another run holds a device that this one needs."""

    exit_code = 75  # EX_TEMPFAIL of <sysexits.h>: try again


class Diverged(RunStopped, FloatingPointError):
    """A loss or gradient was not finite."""


def out_of_memory(error: Exception) -> OutOfMemory | None:
    """The error in a sentence, if it is one of memory: Python's own, or XLA's RESOURCE_EXHAUSTED."""
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
        return None
    return OutOfMemory(
        f"out of memory ({first_line(error)}); lower training.batch_size, prompts.token_budget or "
        "evaluation.batch_size, or use more devices."
    )


# How libraries of other languages tell what Python tells by `OSError.errno`; SQLite's name where its shared
# memory cannot grow.
_FULL = ("no space left on device", "disk is full", "disk quota exceeded")
_FULL_IN_SQLITE = "SQLITE_IOERR_SHMSIZE"


def no_room(error: BaseException) -> BaseException | None:
    """Of an error and those that led to it, the one that tells of a disk without room."""
    return next((each for each in _chain(error) if _tells_of_no_room(each)), None)


def _tells_of_no_room(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if getattr(error, "sqlite_errorname", "") == _FULL_IN_SQLITE:
        return True
    return any(sign in str(error).lower() for sign in _FULL)


def disk_full(error: BaseException, home: Path) -> DiskFull | None:
    """The error in a sentence, if it is one of a disk without room.

    Args:
      home: what is full where the error names no file outside it.
    """
    if (found := no_room(error)) is None:
        return None
    file = Path(str(getattr(found, "filename", None) or home)).absolute()
    inside = file.is_relative_to(home)
    place = f"JORA_HOME {home}" if inside else f"the folder {file.parent}"
    remedy = "make room there or move it to a larger one" if inside else "make room there"
    return DiskFull(
        f"No room is left on the disk of {place}; {remedy}, then run this again to go on from what is done."
    )


def untrusted(error: BaseException) -> bool:
    """Whether an error came of a certificate that this machine does not trust, whatever library tells it."""
    return any("CERTIFICATE_VERIFY_FAILED" in str(each) for each in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it was raised from or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def first_line(error: Exception) -> str:
    """What another library's error says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
