"""The errors that end a command with one sentence and an exit code of their own."""


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


def first_line(error: Exception) -> str:
    """What another library's error says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
