"""The registered versions of adapters: logged to MLflow, found, listed, fetched, and given aliases."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from jora_tasks.registry import champions, listing
from jora_tasks.registry.client import CONTENDED, PAUSE_SECONDS, TRIES
from jora_tasks.registry.connection import Connection
from jora_tasks.registry.curves import Curves
from jora_tasks.registry.listing import Line, Listed, Listing
from jora_tasks.registry.versions import EVALUATION, KEY, RegisteredAdapter, fetch, manifest_tag

ADAPTER_FOLDER, REPORT_FOLDER = "adapter", "report"
# MLflow's limits on the length of values.
_LONGEST_PARAM, _LONGEST_TAG = 6000, 5000


class RegisteredAdapters(Connection):
    """The versions registered in a home, or on a server; see `Connection`."""

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
          tags: of the run and of the version, among them `DIGEST` and `EVALUATION`; the digest of the
            folder's manifest is added.
          params: settings of the run, flat.
          reports: further files to keep beside the adapter.
          description: of the version, a sentence.

        Returns:
          The version's number.
        """
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException

        client = self._client()
        self._ensure_model(name)
        tags = {**tags, **manifest_tag(folder)}
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
            with contextlib.suppress(MlflowException):  # a server that is gone does not hear this either
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
            found += [RegisteredAdapter.of(version) for version in batch]
            page = batch.token
            if not page:
                return sorted(found, key=lambda version: version.version)

    def get(self, name: str, version: int) -> RegisteredAdapter | None:
        """One version, or None."""
        found = None if self._empty() else listing.model_version(self._client(), name, version)
        return RegisteredAdapter.of(found) if found is not None else None

    def get_alias(self, name: str, alias: str) -> RegisteredAdapter | None:
        """The version that has an alias, or None."""
        if self._empty():
            return None
        from mlflow.exceptions import MlflowException

        try:
            return RegisteredAdapter.of(self._client().get_model_version_by_alias(name, alias))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Give a version an alias; `promote` is for the champion."""
        from mlflow.exceptions import MlflowException

        for tries in itertools.count(1):
            try:
                return self._client().set_registered_model_alias(name, alias, str(version))
            except MlflowException as error:
                if error.error_code not in CONTENDED or tries == TRIES:
                    raise
                time.sleep(PAUSE_SECONDS * tries)

    def names(self) -> list[str]:
        """Every line of adapters registered here, by name."""
        if self._empty():
            return []
        client, found, page = self._client(), [], None
        while True:
            batch = client.search_registered_models(page_token=page)
            found += [model.name for model in batch if not champions.is_history(model.name)]
            page = batch.token
            if not page:
                return sorted(found)

    def aliases(self, name: str) -> dict[str, int]:
        """Every alias of a line, people's own too, and the version that has it."""
        from mlflow.exceptions import MlflowException

        if self._empty():
            return {}
        try:
            model = self._client().get_registered_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
        return {alias: int(version) for alias, version in model.aliases.items()}

    def lines(self, size: int, token: str = "") -> Listing[Line]:
        """Some lines of adapters with their aliases, by name; ``token`` is that of the page before."""
        return Listing() if self._empty() else listing.lines(self._client(), size, token)

    def line(self, name: str) -> Line | None:
        """One line of adapters, or None."""
        return None if self._empty() else listing.line(self._client(), name)

    def listed(self, name: str, size: int, token: str = "") -> Listing[Listed]:
        """Some versions with their figures, newest first; ``token`` is that of the page before."""
        return Listing() if self._empty() else listing.versions(self._client(), name, size, token)

    def listed_version(self, name: str, version: int) -> Listed | None:
        """One version with its figures, or None."""
        return None if self._empty() else listing.version(self._client(), name, version)

    def download(self, adapter: RegisteredAdapter, folder: Path) -> Path:
        """Fetch a version's PEFT folder into ``folder`` and check it against its digest; see `fetch`."""
        self._client()
        return fetch(adapter, folder, self.location)

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client().create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
