"""Training curves in MLflow, while the adapter is trained."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

TRAINING = "jora.training"
"""Tag of a run of curves: the key of the adapter that is trained."""
FLUSH_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Curves:
    """One MLflow run's metrics, update by update; a run that was interrupted is gone on with.

    A server that fails while the adapter is trained costs the curves, with a warning, and nothing else.

    Args:
      experiment: id of the experiment.
      key: of the adapter; the run is found again by it.
      names: figure of an update → what the curve is called.
    """

    def __init__(
        self, client: MlflowClient, experiment: str, run_name: str, key: str, names: Mapping[str, str]
    ) -> None:
        self._client, self._names = client, names
        found = client.search_runs([experiment], f"tags.`{TRAINING}` = '{key}'", max_results=1)
        run = found[0] if found else client.create_run(experiment, run_name=run_name, tags={TRAINING: key})
        self.run_id = run.info.run_id
        client.update_run(self.run_id, status="RUNNING")
        logged = client.get_metric_history(self.run_id, names["loss"])
        self._last_step = max((metric.step for metric in logged), default=0)
        self._waiting: list[Metric] = []
        self._flushed = time.monotonic()

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        """Add an update's figures; those that the run has already are the same and are left out."""
        from mlflow.entities import Metric

        step, now = metrics["step"], int(time.time() * 1000)
        if step <= self._last_step:
            return
        self._last_step = step
        self._waiting += [
            Metric(tag, float(metrics[name]), now, step)
            for name, tag in self._names.items()
            if metrics.get(name) is not None
        ]
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def close(self, finished: bool) -> None:
        """Send what is left, and say whether the training ended well."""
        self._flush()
        self._try(
            "end", lambda: self._client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")
        )

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), 1000):  # MLflow takes 1,000 at once
            batch = waiting[start : start + 1000]
            self._try("log", lambda batch=batch: self._client.log_batch(self.run_id, metrics=batch))
        self._flushed = time.monotonic()

    def _try(self, what: str, call: Any) -> None:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            call()
        except (MlflowException, SQLAlchemyError, OSError) as error:
            _log.warning("MLflow could not %s the training curves: %s", what, str(error)[:200])
