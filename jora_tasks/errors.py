"""The one error that is the user's to mend."""


class InputError(ValueError):
    """Bad input: a setting, a file or a folder that the user can mend.

    The message is one sentence that names the field or file and the remedy. Commands print it
    alone, without a traceback, and exit with code 2; nothing has been written by then.
    """
