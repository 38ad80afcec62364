"""Find and end the processes of one session, and only those."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def birth(pid: int) -> str:
    """What tells a process from all others that ever had its id; empty if it is gone.

    The machine's boot and the kernel's ticks from there to the start. A start since 1970, as psutil
    has it, is another after the clock was set.
    """
    try:
        boot = _BOOT.read_text().strip()
        after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return f"{boot} {after_name[19]}"  # field 22 of proc(5)'s; the name before it may have spaces


def is_same(pid: int, born: str) -> bool:
    """Whether the process of this id is alive and is the one of this birth (ids are reused)."""
    try:
        return birth(pid) == born and _alive(psutil.Process(pid))
    except psutil.Error:
        return False


def members(pid: int, born: str, mark: tuple[str, str]) -> list[psutil.Process]:
    """The living processes of a session's leader: its session, its descendants, those with its mark.

    A mark is an environment variable and its value. Some of Airflow's processes overwrite their
    environment with a title and some leave for other process groups, so no single sign finds all.

    Args:
      pid: the leader, which may be gone.
      born: the leader's birth; a later process of the same id is not taken for it.
      mark: environment variable and value that every process of the session was started with.
    """
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    reused = birth(pid) not in ("", born)
    found: dict[int, psutil.Process] = {}
    if not reused:
        with contextlib.suppress(psutil.Error):
            leader = psutil.Process(pid)
            found = {process.pid: process for process in [leader, *leader.children(recursive=True)]}
    for process in psutil.process_iter():
        if process.pid in found or process.pid in own:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            in_session = not reused and os.getsid(process.pid) == pid
            if in_session or process.environ().get(mark[0]) == mark[1]:
                found[process.pid] = process
    return [process for process in found.values() if process.pid not in own and _alive(process)]


def marked(name: str, value: str) -> list[psutil.Process]:
    """The living processes that have this environment variable with this value, but not this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(name) == value and _alive(process):
                found.append(process)
    return found


def end(find: Callable[[], list[psutil.Process]], grace: float) -> list[psutil.Process]:
    """Wait for processes to end, kill those that do not, and return those that even then are left.

    Args:
      find: tells who is still there; asked again, since the dying may leave children behind.
      grace: seconds to wait before SIGKILL.
    """
    deadline = time.monotonic() + grace
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(0.1)
    deadline = time.monotonic() + 5
    while left and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.1)
        left = find()
    return left


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal a process group; one that is gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _alive(process: psutil.Process) -> bool:
    """Not gone, and not a zombie that waits for its parent; our own zombies are reaped here."""
    try:
        if process.status() != psutil.STATUS_ZOMBIE:
            return True
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
    except psutil.Error:
        pass
    return False
