"""The registry of adapters, kept by MLflow; only this module and its `registry_` siblings know it.

Each version is a PEFT folder with its report, logged to an MLflow run with metrics, settings and
digests. Aliases say what a version is for: ``candidate`` is the newest, ``champion`` the one in use.
Without ``$MLFLOW_TRACKING_URI`` all of it lies in ``$JORA_HOME/mlflow``: SQLite and a folder.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_tasks.artifacts import MANIFEST, digest_file, digest_json
from jora_tasks.errors import InputError
from jora_tasks.registry_client import SQLITE, check_address, contact, database_file, is_made, make_database
from jora_tasks.registry_curves import Curves

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE, CHAMPION = "candidate", "champion"
ADAPTER_FOLDER, REPORT_FOLDER = "adapter", "report"
# Tags of a version.
DIGEST, KEY, EVALUATION, BASE_MODEL, COMPARED_WITH, CHAMPION_SINCE = (
    "jora.adapter_digest",
    "jora.adapter_key",
    "jora.evaluation_digest",
    "jora.base_model_digest",
    "jora.compared_with",
    "jora.champion_since",
)
# Tag of the registered model: the versions that were champion, oldest first, the last one in use.
_CHAMPIONS = "jora.champions"
_CHAMPIONS_KEPT = 100
# MLflow's limits on the length of values.
_LONGEST_PARAM, _LONGEST_TAG = 6000, 5000


@dataclass(frozen=True)
class RegisteredAdapter:
    """One version of a line of adapters."""

    name: str
    version: int
    tags: Mapping[str, str]
    source: str

    @property
    def digest(self) -> str:
        """Digest of the adapter artifact."""
        return self.tags.get(DIGEST, "")

    @property
    def key(self) -> str:
        """Key of the adapter artifact in the home that made it."""
        return self.tags.get(KEY, "")


class Registry:
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

    def register(
        self,
        folder: Path,
        name: str,
        *,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        params: Mapping[str, str],
        reports: Sequence[Path] = (),
        description: str = "",
    ) -> int:
        """Log an adapter as a new version of ``name``.

        Args:
          folder: PEFT folder; all its files are copied.
          name: of the registered model; made if new.
          metrics: figures of the MLflow run.
          tags: of the run and of the version, among them `DIGEST` and `EVALUATION`.
          params: settings of the run, flat.
          reports: further files to keep beside the adapter.
          description: of the version, a sentence.

        Returns:
          The version's number.
        """
        from mlflow.entities import Metric, Param, RunTag

        client = self._client()
        self._ensure_model(name)
        run = client.create_run(self._experiment(name), run_name=f"{name} {tags.get(KEY, '')}".strip())
        run_id = run.info.run_id
        try:
            now = int(time.time() * 1000)
            client.log_batch(
                run_id,
                metrics=[Metric(key, float(value), now, 0) for key, value in metrics.items()],
                tags=[RunTag(key, value[:_LONGEST_TAG]) for key, value in tags.items()],
            )
            items = list(params.items())
            for start in range(0, len(items), 100):  # MLflow takes 100 params at once
                batch = [Param(key, value[:_LONGEST_PARAM]) for key, value in items[start : start + 100]]
                client.log_batch(run_id, params=batch)
            client.log_artifacts(run_id, str(folder), ADAPTER_FOLDER)
            for report in reports:
                client.log_artifact(run_id, str(report), REPORT_FOLDER)
            client.set_terminated(run_id, "FINISHED")
            version = client.create_model_version(
                name,
                source=f"{run.info.artifact_uri}/{ADAPTER_FOLDER}",
                run_id=run_id,
                tags={key: value[:_LONGEST_TAG] for key, value in tags.items()},
                description=description,
            )
        except BaseException:
            client.set_terminated(run_id, "FAILED")
            raise
        return int(version.version)

    def curves(self, name: str, key: str, names: Mapping[str, str]) -> Curves:
        """An MLflow run for the training curves of the adapter of this key; see `Curves`."""
        client = self._client()
        return Curves(client, self._experiment(name), f"{name} {key} training", key, names)

    def find_version(
        self, name: str, digest: str, evaluation_digest: str | None = None
    ) -> RegisteredAdapter | None:
        """The newest version with this adapter, and this evaluation if given."""
        found = [
            version
            for version in self.versions(name)
            if version.digest == digest and evaluation_digest in (None, version.tags.get(EVALUATION))
        ]
        return found[-1] if found else None

    def versions(self, name: str) -> list[RegisteredAdapter]:
        """All versions of a name, oldest first; empty if there is none."""
        if self._empty():
            return []
        client, found, page = self._client(), [], None
        while True:
            batch = client.search_model_versions(f"name = '{name}'", page_token=page)
            found += [_adapter(version) for version in batch]
            page = batch.token
            if not page:
                return sorted(found, key=lambda version: version.version)

    def get(self, name: str, version: int) -> RegisteredAdapter | None:
        """One version, or None."""
        return next((each for each in self.versions(name) if each.version == version), None)

    def get_champion(self, name: str) -> RegisteredAdapter | None:
        """The version in use, or None."""
        return self.get_alias(name, CHAMPION)

    def get_alias(self, name: str, alias: str) -> RegisteredAdapter | None:
        """The version that has an alias, or None."""
        if self._empty():
            return None
        from mlflow.exceptions import MlflowException

        try:
            return _adapter(self._client().get_model_version_by_alias(name, alias))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def rival(self, name: str, digest: str) -> RegisteredAdapter | None:
        """The version that an adapter has to beat, or None.

        It is the champion; for the champion itself it is the one that it was compared with when it
        was registered, so that evaluating a champion again asks the same question again.
        """
        champion = self.get_champion(name)
        if champion is None or champion.digest != digest:
            return champion
        before = champion.tags.get(COMPARED_WITH, "")
        return self.get(name, int(before)) if before.isdigit() else None

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Give a version an alias; `promote` is for the champion."""
        self._client().set_registered_model_alias(name, alias, str(version))

    def promote(self, name: str, version: int) -> int | None:
        """Make a version champion and remember the one before.

        Returns:
          The version that was champion until now, or None.

        Raises:
          InputError: if there is no such version.
        """
        self._existing(name, version)
        champion = self.get_champion(name)
        if champion is not None and champion.version == version:
            return version
        # The history is written first: a kill between the two leaves a last entry that is not the
        # champion, which `_history` ignores.
        self._write_history(name, [*self._history(name), version])
        self._client().set_model_version_tag(
            name, str(version), CHAMPION_SINCE, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        )
        self.set_alias(name, CHAMPION, version)
        return champion.version if champion else None

    def rollback(self, name: str) -> int:
        """Make the champion before the current one champion again.

        Returns:
          Its version.

        Raises:
          InputError: if there is none before it that still exists.
        """
        known = {version.version for version in self.versions(name)}
        history = self._history(name)
        earlier = [version for version in history[:-1] if version in known]
        if not earlier:
            raise InputError(
                f"{name!r} has no earlier champion to go back to; `jora promote` makes a version champion."
            )
        self.set_alias(name, CHAMPION, earlier[-1])
        self._write_history(name, earlier)
        return earlier[-1]

    def download(self, adapter: RegisteredAdapter, folder: Path) -> Path:
        """Fetch a version's PEFT folder into ``folder`` and check it against its digest.

        Raises:
          InputError: if the registry no longer has it, or has other content.
        """
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        folder.mkdir(parents=True, exist_ok=True)
        self._client()
        try:
            local = Path(
                download_artifacts(
                    artifact_uri=adapter.source, dst_path=str(folder), tracking_uri=self.location
                )
            )
        except (MlflowException, OSError) as error:
            raise InputError(
                f"Version {adapter.version} of {adapter.name!r} cannot be fetched from the registry "
                f"({type(error).__name__}); `jora promote` another version."
            ) from None
        if _content_digest(local) != adapter.digest:
            raise InputError(
                f"The files of version {adapter.version} of {adapter.name!r} in the registry are not those "
                "that were registered; `jora promote` another version."
            )
        return local

    def _existing(self, name: str, version: int) -> RegisteredAdapter:
        versions = self.versions(name)
        for each in versions:
            if each.version == version:
                return each
        known = ", ".join(str(each.version) for each in versions) or "none"
        raise InputError(f"{name!r} has no version {version} in the registry; its versions: {known}.")

    def _history(self, name: str) -> list[int]:
        """Champions oldest first, ending with the current one; empty without a champion."""
        champion = self.get_champion(name)
        if champion is None:
            return []
        text = self._client().get_registered_model(name).tags.get(_CHAMPIONS, "[]")
        history: list[int] = json.loads(text)
        while history and history[-1] != champion.version:
            history.pop()
        return history or [champion.version]

    def _write_history(self, name: str, versions: Sequence[int]) -> None:
        kept = json.dumps(list(versions)[-_CHAMPIONS_KEPT:])
        self._client().set_registered_model_tag(name, _CHAMPIONS, kept)

    @property
    def _remedy(self) -> str:
        if self._server:
            return "start the server that MLFLOW_TRACKING_URI names, correct it or unset it"
        return "make room for the database, restore it or move it away"

    def _empty(self) -> bool:
        """Whether nothing was ever registered here; spares MLflow's import and the making of a database."""
        database = database_file(self._models)
        return database is not None and not is_made(database)

    def _client(self) -> MlflowClient:
        if self._opened is None:
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
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

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client().create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def _adapter(version: Any) -> RegisteredAdapter:
    return RegisteredAdapter(version.name, int(version.version), dict(version.tags), version.source)


def _content_digest(folder: Path) -> str:
    """The digest that the artifact store gave this folder's content."""
    return digest_json(
        {
            file.relative_to(folder).as_posix(): digest_file(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file() and file.name != MANIFEST
        }
    )
