"""A home's way to its registry: opened at the first need, with the database and folders that it needs."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from jora_tasks.digests import digest_bytes
from jora_tasks.registry.client import SQLITE, check_address, contact, database_file, is_made, make_database

if TYPE_CHECKING:
    from mlflow import MlflowClient


class Connection:
    """The adapters registered in a home, or on the server that ``$MLFLOW_TRACKING_URI`` names.

    Raises:
      InputError: if that is no address of a server or database; by every method at its first contact
        if nothing answers there.
    """

    def __init__(self, home: Path) -> None:
        self._folder = home / "mlflow"
        self._lock = home / "locks" / "mlflow"
        self._server = os.environ.get("MLFLOW_TRACKING_URI", "")
        for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            check_address(variable, os.environ.get(variable, ""))
        # Where versions are, if apart from runs; MLflow's setting too.
        self._models = os.environ.get("MLFLOW_REGISTRY_URI") or self.location
        self._opened: MlflowClient | None = None

    @property
    def location(self) -> str:
        """Where the registry is: MLflow's tracking URI."""
        return self._server or f"{SQLITE}{self._folder / 'mlflow.db'}"

    @property
    def place(self) -> str:
        """Which registry has the versions, as part of a file's name: empty for the home's own."""
        own = f"{SQLITE}{self._folder / 'mlflow.db'}"
        return "" if self._models == own else f".{digest_bytes(self._models.encode())[7:23]}"

    @property
    def database(self) -> Path | None:
        """The SQLite file that has the versions, made or not; None where a server has them."""
        return database_file(self._models)

    def made(self) -> bool:
        """Whether there is a registry already; a server is taken to have one."""
        return not self._empty()

    @property
    def _remedy(self) -> str:
        if self._server:
            return "start the server that MLFLOW_TRACKING_URI names, correct it or unset it"
        return "make room for the database, restore it or move it away"

    def _empty(self) -> bool:
        """Whether nothing was ever registered here; spares MLflow's import and the making of a database."""
        database = self.database
        return database is not None and not is_made(database)

    def _client(self) -> MlflowClient:
        if self._opened is None:
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            import mlflow  # noqa: F401 (sets the levels that are changed here)

            for logger in ("mlflow", "alembic"):
                logging.getLogger(logger).setLevel(logging.WARNING)
            for address in dict.fromkeys((self.location, self._models)):
                make_database(address, self._lock, self._remedy)
            self._opened = contact(self.location, self._models, self._remedy)
        return self._opened

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        client = self._client()
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            return experiment.experiment_id
        database = database_file(self.location)  # files lie beside it; MLflow would take the current folder
        artifacts = (database.resolve().parent / "artifacts").as_uri() if database else None
        try:
            return client.create_experiment(name, artifact_location=artifacts)
        except MlflowException as error:
            experiment = client.get_experiment_by_name(name)  # another process was faster
            if experiment is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return experiment.experiment_id
