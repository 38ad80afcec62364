"""Training curves for TensorBoard, by its own writer (which needs no TensorFlow)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jora_tasks.trainer.metrics import CURVES


class TensorBoard:
    """Writes an update's figures as scalars; use it as ``on_step``, and close it at the end.

    A run that goes on from a checkpoint tells TensorBoard so, which then forgets the updates after it.

    Args:
      folder: to be named to ``tensorboard --logdir``; made if absent.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(folder))
        self._began = False

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        step, now = metrics["step"], time.time()
        if not self._began:
            start = SessionLog(status=SessionLog.SessionStatus.START)
            self._writer.add_event(Event(step=step, wall_time=now, session_log=start))
            self._began = True
        values = [
            Summary.Value(tag=tag, simple_value=metrics[name])
            for name, tag in CURVES.items()
            if metrics.get(name) is not None
        ]
        self._writer.add_event(Event(step=step, wall_time=now, summary=Summary(value=values)))

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
