"""A trace of a few updates by JAX's profiler, to be opened in XProf, TensorBoard or Perfetto."""

from __future__ import annotations

from pathlib import Path

import jax

WARM_UP = 2
"""Updates before the trace: the first ones load programs and fill caches."""


class Profile:
    """Traces updates `WARM_UP` + 1 to `WARM_UP` + ``updates`` of this process into a folder."""

    def __init__(self, folder: Path, updates: int) -> None:
        self._folder, self._updates = folder, updates
        self._running = False

    def due(self, done: int) -> bool:
        """Whether the trace begins or ends after this many updates of the process."""
        return self._updates > 0 and done in (WARM_UP, WARM_UP + self._updates)

    def turn(self) -> None:
        """Begin it, or end it; no update may be under way."""
        if self._running:
            self.end()
        else:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def end(self) -> None:
        """End the trace if it runs; again does nothing."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
