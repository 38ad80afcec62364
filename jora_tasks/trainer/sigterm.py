"""SIGTERM as a request: the update under way is finished and saved before the process ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jora_tasks.trainer.distributed import several


class StopRequest:
    """Whether the run was asked to stop."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        self._asked = True

    def before(self, step: int) -> bool:
        """Whether to stop before this update; to be asked before each."""
        return self._asked


class SharedStopRequest(StopRequest):
    """Whether any of several processes was asked; all of them hear of it before the same update.

    Each says before every update whether it was asked, and reads what all said before the last, so that
    none waits.
    """

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self._mesh = mesh
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._said: jax.Array | None = None

    def before(self, step: int) -> bool:
        place = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))  # an entry a device
        ours = np.array([self._asked])
        last, self._said = (
            self._said,
            self._any(jax.make_array_from_callback((self._mesh.size,), place, lambda index: ours)),
        )
        return last is not None and bool(last)


@contextlib.contextmanager
def stop_on_sigterm(mesh: Mesh | None) -> Iterator[StopRequest]:
    """Turn the first SIGTERM into a request, of all processes that share the mesh; the second kills.

    Only the main thread may handle signals; in any other the request never comes, and SIGTERM does what
    it did before.
    """
    request = SharedStopRequest(mesh) if mesh is not None and several() else StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: object) -> None:
        request.ask()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
