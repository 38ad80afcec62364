"""The processes of a run, on one host or many, as the environment tells them.

Every process runs the same command. In a SLURM job step of several tasks, SLURM's own variables say which
it is. Elsewhere ``JORA_COORDINATOR`` (host:port that the first process listens on), ``JORA_NUM_PROCESSES``
and ``JORA_PROCESS_ID`` do; in a Kubernetes Indexed Job ``JOB_COMPLETION_INDEX``, which Kubernetes sets, is
enough for the last. ``JORA_NUM_PROCESSES=1`` makes a task of a SLURM step a run of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jora_tasks.errors import InputError

COORDINATOR, PROCESSES, PROCESS = "JORA_COORDINATOR", "JORA_NUM_PROCESSES", "JORA_PROCESS_ID"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
INDICES = (PROCESS, "JOB_COMPLETION_INDEX", "SLURM_PROCID")


@dataclass(frozen=True)
class Group:
    """This process among those of its run; ``coordinator`` is None where JAX finds it from SLURM."""

    coordinator: str | None
    processes: int
    process: int


def group_of(environment: Mapping[str, str]) -> Group | None:
    """What the environment says; None for a run of one process.

    Raises:
      InputError: naming a variable that is missing or no number.
    """
    if PROCESSES in environment:
        processes = _number(environment, PROCESSES)
        if processes == 1:
            return None
        name = next((name for name in INDICES if name in environment), PROCESS)
        group = Group(environment.get(COORDINATOR), processes, _number(environment, name))
        if ":" not in (group.coordinator or ""):
            raise InputError(
                f"{PROCESSES} is {processes}: give {COORDINATOR} as host:port of the first process."
            )
        if not 0 <= group.process < processes:
            raise InputError(f"{name} is {group.process}, but {PROCESSES} is {processes}; count from 0.")
        return group
    if given := [name for name in (COORDINATOR, PROCESS) if name in environment]:
        raise InputError(f"{given[0]} is set without {PROCESSES}; set it to the number of processes.")
    if "SLURM_STEP_NODELIST" in environment and environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return Group(None, _number(environment, "SLURM_NTASKS"), _number(environment, "SLURM_PROCID"))
    return None


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not (value.isascii() and value.isdigit()):
        raise InputError(f"{name} is {value!r}; set it to a whole number.")
    return int(value)
