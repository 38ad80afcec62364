"""Runs a command that ends with its parent: ``python -m jora_tasks.leash PID COMMAND …``.

Who was killed by SIGKILL cannot end its child any more. Without this the trainer of a task would go on beside
that of the task's next try.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    """Replace this process by the command; on Linux it gets SIGTERM when the parent ends."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        sys.exit(128 + signal.SIGTERM)
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
