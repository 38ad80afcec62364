"""Several processes that train one adapter together.

All of them run the same program (`group` says how each knows its place) and compute; the first one alone
keeps and publishes what is made. What only it knows, the others are told by `from_first` and `broadcast`,
which every process must call in the same order.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jora_tasks.errors import InputError
from jora_tasks.trainer.group import LOOPBACK, group_of
from jora_tasks.trainer.memory import take_gpu_memory

START_SECONDS = 300
HEARTBEAT_SECONDS = 30
"""How long the others go on after one has died."""
PATIENCE_SECONDS = 7 * 24 * 3600
"""How long a process waits for one that lives."""

_answers, _meetings = itertools.count(), itertools.count()


def initialize(heartbeat_seconds: int = HEARTBEAT_SECONDS) -> None:
    """Take the memory of GPUs and join the other processes, if the environment speaks of any.

    Before any device is used.

    The coordinator listens on loopback if its address is one, else on every interface
    (``JAX_COORDINATOR_BIND_ADDRESS`` narrows it). A process that dies takes the others with it within
    ``heartbeat_seconds``: JAX ends them with a message that names the dead one.

    Raises:
      InputError: see `group_of`.
    """
    take_gpu_memory()
    group = group_of(os.environ)
    if group is None or jax.distributed.is_initialized():
        return
    options: dict[str, Any] = {"cluster_detection_method": "slurm"}
    if group.coordinator is not None:
        options = {
            "coordinator_address": group.coordinator,
            "num_processes": group.processes,
            "process_id": group.process,
            "cluster_detection_method": "deactivate",
        }
        if group.coordinator.rpartition(":")[0] in LOOPBACK:
            options["coordinator_bind_address"] = group.coordinator
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from `sigterm`
    jax.distributed.initialize(
        **options,
        initialization_timeout=START_SECONDS,
        heartbeat_timeout_seconds=heartbeat_seconds,
        shutdown_timeout_seconds=heartbeat_seconds,
    )


def is_first() -> bool:
    """Whether this process is the one that keeps what is made; true for a run of one process."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether this run has several processes."""
    return jax.process_count() > 1


def from_first(make: Callable[[], Any]) -> Any:
    """What ``make`` returns on the first process, a JSON value, on every process; its `InputError` too.

    The others wait for it however long it takes, as long as the first process lives.
    """
    if not several():
        return make()
    key = f"jora/{next(_answers)}"
    if is_first():
        try:
            answer = {"value": make()}
        except InputError as error:
            answer = {"refused": str(error)}
        _client().key_value_set(key, json.dumps(answer))
    else:
        answer = json.loads(_client().blocking_key_value_get(key, PATIENCE_SECONDS * 1000))
    if "refused" in answer:
        raise InputError(answer["refused"])
    return answer["value"]


def meet() -> None:
    """Wait until every process is here: before computing together after work that may take one longer.

    On CPUs the processes give each other 30 s at their first computation together.
    """
    if several():
        _client().wait_at_barrier(f"jora/{next(_meetings)}", PATIENCE_SECONDS * 1000)


def _client() -> Any:
    """What JAX's own parts talk through; it has no public name."""
    from jax._src.distributed import global_state

    return global_state.client


def broadcast(tree: Any) -> Any:
    """The first process's tree of 4-byte arrays on every process, bit for bit."""
    from jax.experimental import multihost_utils

    # As integers: the broadcast is a sum with zeros, and -0.0 + 0.0 is 0.0.
    bits = jax.tree.map(lambda leaf: np.asarray(leaf).view(np.uint32), tree)
    found = multihost_utils.broadcast_one_to_all(bits)
    return jax.tree.map(lambda leaf, ours: np.asarray(leaf, np.uint32).view(ours.dtype), found, tree)


def gathered(mesh: Mesh | None) -> Callable[[Any], Any]:
    """A function that copies a tree of arrays; in a run of several processes, whole onto every device."""
    places = NamedSharding(mesh, PartitionSpec()) if mesh is not None and several() else None
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=places)
