"""One run to a device: a lease that its process holds, and that ends with the process however that dies.

A device's lease is the kernel's lock on a file, which also says who holds it. Those of GPUs are the
machine's, in the folder for temporary files, so that runs of several homes do not meet either, and last as
long as the process: JAX gives a GPU's memory back no sooner. The CPU's is the home's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path

from jora_tasks.errors import DeviceBusy, InputError
from jora_tasks.trainer.group import group_of
from jora_tasks.variables import number_of

WAIT = "JORA_DEVICE_WAIT"
"""Seconds to wait for a device that another run holds, by default none."""

CPU = "cpu"
_POLL_SECONDS = 1.0
_QUIET_SECONDS, _TELL_SECONDS = 2.5, 60.0

_kept: dict[Path, int] = {}


def devices(environment: Mapping[str, str], nodes: Path = Path("/dev")) -> tuple[str, ...]:
    """The devices that JAX will take in a process with this environment, asked without JAX.

    A GPU is named as in ``CUDA_VISIBLE_DEVICES``, else by the number of its device file.

    >>> devices({"CUDA_VISIBLE_DEVICES": "2,3"})
    ('gpu-2', 'gpu-3')
    >>> devices({"JAX_PLATFORMS": "cpu"})
    ('cpu',)

    Of several processes of one run, which may share a CPU, the first alone has it.
    """
    gpus = () if environment.get("JAX_PLATFORMS") == CPU else _gpus(environment, nodes)
    if gpus:
        return tuple(f"gpu-{name}" for name in gpus)
    group = group_of(environment)
    return (CPU,) if group is None or group.process == 0 else ()


def _gpus(environment: Mapping[str, str], nodes: Path) -> list[str]:
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if not entry_points(group="jax_plugins"):  # JAX knows the CPU alone
        return []
    return sorted(node.name.removeprefix("nvidia") for node in nodes.glob("nvidia[0-9]*"))


@contextlib.contextmanager
def leased(
    home: Path, who: str, told: Callable[[str], None], environment: Mapping[str, str] = os.environ
) -> Iterator[tuple[str, ...]]:
    """Hold this process's devices as long as the block lasts, GPUs to the end of the process.

    Args:
      home: whose CPU it is.
      who: what others are told of the holder.
      told: called now and then with what is waited for.

    Raises:
      DeviceBusy: if another process holds a device, after ``$JORA_DEVICE_WAIT`` seconds.
    """
    wait = number_of(WAIT, 0, environment)
    names = devices(environment)
    with contextlib.ExitStack() as held:
        for name in sorted(names):  # in one order, so that two runs never wait for each other
            file = _file(home, name)
            if file in _kept:
                continue
            descriptor = _hold(file, name, f"{who} (process {os.getpid()})", wait, told)
            if name == CPU:
                held.callback(os.close, descriptor)
            else:
                _kept[file] = descriptor
        yield names


def _file(home: Path, name: str) -> Path:
    if name == CPU:
        folder = home / "locks"
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = Path(tempfile.gettempdir()) / "jora-devices"
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(PermissionError):  # another user made it
            folder.chmod(0o1777)
    return folder / f"device-{''.join(each if each.isalnum() else '-' for each in name)}"


def _hold(file: Path, name: str, who: str, wait: float, told: Callable[[str], None]) -> int:
    """The descriptor of the locked file, which says who has it."""
    descriptor = _open(file)
    try:
        _lock(descriptor, name, wait, told)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{who}\n".encode(), 0)
        with contextlib.suppress(PermissionError):  # another user made it
            os.fchmod(descriptor, 0o666)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open(file: Path) -> int:
    """No link of others who write in the folder is followed; and no O_CREAT where the file is there already,
    since kernels (fs.protected_regular) refuse that for another user's file."""
    flags = os.O_RDWR | os.O_NOFOLLOW
    try:
        return os.open(file, flags)
    except FileNotFoundError:
        return os.open(file, flags | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"{file} is a link, not the file of a lease; remove it.") from None


def _lock(descriptor: int, name: str, wait: float, told: Callable[[str], None]) -> None:
    tell = time.monotonic() + _QUIET_SECONDS
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0).decode("utf-8", "replace").strip() or "another run"
        now = time.monotonic()
        if now >= deadline:
            raise DeviceBusy(
                f"Device {name} is in use by {holder}; wait for it, set {WAIT} to the seconds to wait, "
                "or give another in CUDA_VISIBLE_DEVICES."
            )
        if now >= tell:
            told(f"for device {name}, in use by {holder}")
            tell = now + _TELL_SECONDS
        time.sleep(min(_POLL_SECONDS, deadline - now))
