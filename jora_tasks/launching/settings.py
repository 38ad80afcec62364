"""How the processes of a training are started, as the environment of whoever starts it tells.

``JORA_HOSTS=a,b`` names the host of each process; one that is named twice runs two. ``JORA_LAUNCHER`` is the
command that starts a process, by default ``{command}`` alone where all hosts are this one, else
``ssh -o BatchMode=yes {host} {command}``. Its placeholders:

    {command}        what to run there; within quotes with other words it is quoted for a shell
    {host}           the process's host
    {process_id}     its number, from 0
    {num_processes}  how many there are
    {coordinator}    host:port that the first process listens on
    {hosts}          all hosts, with commas

A launcher with neither ``{host}`` nor ``{process_id}`` starts all of them by one command, as
``srun --ntasks=2 {command}`` does; they learn from SLURM which they are, and ``JORA_HOSTS`` may be unset.
Braces that are none of these are doubled. The launcher must pass its stdin on, and stderr back.

``JORA_TRAINING_JOB=file`` starts them as the pods of a Kubernetes Job instead, made as that manifest says.
"""

from __future__ import annotations

import shlex
import socket
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from jora_tasks.errors import InputError
from jora_tasks.shared_store import ARTIFACTS
from jora_tasks.trainer.group import COORDINATOR, LOOPBACK, PROCESS, PROCESSES

HOSTS, LAUNCHER = "JORA_HOSTS", "JORA_LAUNCHER"
PORT = "JORA_COORDINATOR_PORT"
"""Port that the first process listens on, by default one that is free here."""
PASSED = "JORA_PASSED_VARIABLES"
"""Further variables to pass to the processes, by name or as ``NCCL_*``, with commas."""
TRAINING_JOB = "JORA_TRAINING_JOB"
"""Manifest of a Job, whose pods the processes are; see `indexed_job`."""
SETTINGS = (HOSTS, LAUNCHER, PORT, PASSED, TRAINING_JOB)

ALONE = ("{command}",)
BY_SSH = "ssh -o BatchMode=yes {host} {command}"
PLACEHOLDERS = ("command", "host", "process_id", "num_processes", "coordinator", "hosts")
# What training reads. The rest of a worker's environment, secrets among it, stays with the worker.
_FAMILIES = (
    "JORA",
    "JAX",
    "XLA",
    "LIBTPU",
    "TPU",
    "NCCL",
    "HF",
    "FSSPEC",
    "AWS",
    "AZURE",
    "GOOGLE",
    "MLFLOW",
)
_PASSED = (*(f"{family}_*" for family in _FAMILIES), "PYTHONUNBUFFERED")
_KEPT = (*SETTINGS, "JORA_SIGNING_KEY", "JORA_NOTIFY")


@dataclass(frozen=True)
class Start:
    """One command of a launch.

    Attributes:
      process: number of the process that it starts; None where it starts all.
      host: where it runs; empty if the launcher says.
      words: the command.
      group: variables that tell the process its place.
    """

    process: int | None
    host: str
    words: tuple[str, ...]
    group: Mapping[str, str]


@dataclass(frozen=True)
class Launch:
    """What the environment says of a launch.

    Attributes:
      setting: the variable that asked for it.
    """

    hosts: tuple[str, ...]
    template: tuple[str, ...]
    port: int
    passed: tuple[str, ...]
    setting: str = LAUNCHER

    def starts(self, command: Sequence[str]) -> list[Start]:
        """The commands that start the processes."""
        common = {"num_processes": str(len(self.hosts)), "hosts": ",".join(self.hosts)}
        if self.at_once():
            return [Start(None, "", self._filled(common, command), {})]
        coordinator = f"{_address(self.hosts[0])}:{self.port or _free_port()}"
        starts = []
        for number, host in enumerate(self.hosts):
            values = common | {"host": host, "process_id": str(number), "coordinator": coordinator}
            group = {PROCESSES: str(len(self.hosts))}
            if len(self.hosts) > 1:
                group |= {COORDINATOR: coordinator, PROCESS: str(number)}
            starts.append(Start(number, host, self._filled(values, command), group))
        return starts

    def at_once(self) -> bool:
        """Whether one command starts all processes."""
        return not self.hosts or (
            self.template != ALONE and not _fields(self.template) & {"host", "process_id"}
        )

    def variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The variables that go with the processes, wherever they run; never on a command line."""
        patterns = (*_PASSED, *self.passed)
        return {
            name: value
            for name, value in environment.items()
            if name not in _KEPT and any(fnmatchcase(name, pattern) for pattern in patterns)
        }

    def _filled(self, values: Mapping[str, str], command: Sequence[str]) -> tuple[str, ...]:
        words: list[str] = []
        for word in self.template:
            words += command if word == ALONE[0] else [word.format(command=shlex.join(command), **values)]
        return tuple(words)


def launch_of(environment: Mapping[str, str]) -> Launch | None:
    """What the environment says; None where it asks for no launch.

    Raises:
      InputError: naming the variable that cannot be used.
    """
    hosts = tuple(environment.get(HOSTS, "").replace(",", " ").split())
    launcher = environment.get(LAUNCHER, "").strip()
    passed = tuple(environment.get(PASSED, "").replace(",", " ").split())
    if environment.get(TRAINING_JOB):
        _check_job(environment)
        return Launch((), ALONE, _port(environment.get(PORT, "")), passed, TRAINING_JOB)
    if not hosts and (given := environment.get(HOSTS, "").strip()):
        raise InputError(f"{HOSTS} is {given!r}, which names no host; give names with commas, or unset it.")
    if not hosts and not launcher:
        return None
    if PROCESSES in environment:
        raise InputError(
            f"{PROCESSES}, of processes started by hand, and {HOSTS if hosts else LAUNCHER}, which starts "
            "them, exclude each other; unset one."
        )
    for host in hosts:
        if host.startswith("-") or not set(host) <= set(string.ascii_letters + string.digits + "._-@:[]"):
            raise InputError(f"{HOSTS} has {host!r}, which is no host; give names or addresses with commas.")
    here = [_address(host) in LOOPBACK for host in hosts]
    if any(here) and not all(here) and here[0]:
        raise InputError(f"{HOSTS} begins with {hosts[0]}; name it as the other hosts reach it.")
    template = _template(launcher or (ALONE[0] if all(here) else BY_SSH), bool(hosts))
    return Launch(hosts, template, _port(environment.get(PORT, "")), passed)


def _check_job(environment: Mapping[str, str]) -> None:
    if other := next((name for name in (HOSTS, LAUNCHER, PROCESSES) if environment.get(name)), None):
        raise InputError(f"{TRAINING_JOB} and {other} exclude each other; unset one.")
    if not environment.get(ARTIFACTS):
        raise InputError(
            f"{TRAINING_JOB} needs {ARTIFACTS}, by which its pods share artifacts and checkpoints; set it to "
            "a URL that all of them reach."
        )


def _template(launcher: str, hosts: bool) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(launcher))
        fields = _fields(words)
    except ValueError as error:
        raise InputError(f"{LAUNCHER} cannot be read ({error}); close quotes, double other braces.") from None
    if unknown := sorted(fields - set(PLACEHOLDERS)):
        known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise InputError(f"{LAUNCHER} has {{{unknown[0]}}}; it may have {known}, other braces doubled.")
    if "command" not in fields:
        raise InputError(f"{LAUNCHER} lacks {{command}}, what is to be run; add it.")
    if not hosts and (words == ALONE or fields != {"command"}):
        raise InputError(f"{LAUNCHER} {launcher!r} needs to know the hosts; name them in {HOSTS}.")
    if "coordinator" in fields and not fields & {"host", "process_id"}:
        raise InputError(f"{LAUNCHER} has {{coordinator}}, which one command for all cannot use; remove it.")
    return words


def _fields(words: Iterable[str]) -> set[str]:
    found = set()
    for word in words:
        for _, name, form, conversion in string.Formatter().parse(word):
            if name is not None:
                found.add(name + (f":{form}" if form else "") + (f"!{conversion}" if conversion else ""))
    return found


def _port(text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise InputError(f"{PORT} is {text!r}; give a port from 1 to 65535, or unset it.")
    return int(text or 0)


def _address(host: str) -> str:
    return host.rpartition("@")[2]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
