"""The errors that end a command with one sentence and an exit code of their own."""


class InputError(ValueError):
    """Bad input: a setting, a file or a folder that the user can mend.

    The message is one sentence that names the field or file and the remedy. Commands print it
    alone, without a traceback, and exit with code 2; nothing has been written by then.
    """


class RunStopped(RuntimeError):
    """A run that ended before its time, for a reason its one sentence tells; its checkpoints are good.

    Commands print the sentence alone and exit with `exit_code`.
    """

    exit_code = 1


class Preempted(RunStopped):
    """The run was asked to stop by SIGTERM and saved its state; started again, it goes on from there."""

    exit_code = 75  # EX_TEMPFAIL of <sysexits.h>: try again


class Diverged(RunStopped, FloatingPointError):
    """A loss or gradient was not finite."""


def first_line(error: Exception) -> str:
    """What another library's error says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
