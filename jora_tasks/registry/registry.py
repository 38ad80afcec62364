"""The registry itself: versions are registered, found and fetched; the champion is moved."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_tasks.errors import InputError
from jora_tasks.registry import champions, listing
from jora_tasks.registry.champions import ANY, PROMOTE, ROLLBACK, ChampionMoved, Record, Transition
from jora_tasks.registry.client import CONTENDED, PAUSE_SECONDS, TRIES
from jora_tasks.registry.connection import Connection
from jora_tasks.registry.curves import Curves
from jora_tasks.registry.listing import Line, Listed, Listing
from jora_tasks.registry.versions import (
    CHAMPION,
    COMPARED_WITH,
    EVALUATION,
    KEY,
    RegisteredAdapter,
    fetch,
    manifest_tag,
)

if TYPE_CHECKING:
    pass

ADAPTER_FOLDER, REPORT_FOLDER = "adapter", "report"
# MLflow's limits on the length of values.
_LONGEST_PARAM, _LONGEST_TAG = 6000, 5000
_BEFORE = "it was champion before records were kept"


class Registry(Connection):
    """The adapters registered in a home, or on a server; see `Connection`."""

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

    def get_champion(self, name: str) -> RegisteredAdapter | None:
        """The version in use, or None: the last that the history tells of, if it still exists.

        An alias that says otherwise is set right: a kill between a record and the alias leaves such a one.
        """
        from mlflow.exceptions import MlflowException

        while True:
            # The alias is read first: it is set after its record, so it is never ahead of the history.
            alias, history = self.get_alias(name, CHAMPION), self._history(name)
            last = history[-1].transition.version if history else None
            if last is None or (alias is not None and alias.version == last):
                return alias
            champion = self.get(name, last)
            if champion is None:
                return None
            try:
                self.set_alias(name, CHAMPION, last)
            except MlflowException as error:
                if error.error_code != "PERMISSION_DENIED":  # a reader is told the truth all the same
                    raise
                return champion

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

    def transitions(self, name: str) -> list[Transition]:
        """Every move of the champion, oldest first; see `jora_tasks.registry.champions`."""
        return [record.transition for record in self._history(name)]

    def promote(
        self,
        name: str,
        version: int,
        *,
        by: str,
        reason: str,
        expected: Any = ANY,
        verdict: str = "",
        airflow_run: str = "",
    ) -> Transition:
        """Make a version champion, with the record of it. For the champion itself nothing is done.

        Args:
          by: who does it.
          reason: why, a sentence.
          expected: version of the champion that is to be replaced, None for no champion; `ANY`, the
            default, for whichever there is.
          verdict: key of the verdict that is the reason, if one is.
          airflow_run: ``dag_id/run_id`` of the run that does it, if one does.

        Returns:
          The record; of the champion itself, the one that made it so.

        Raises:
          InputError: if there is no such version.
          ChampionMoved: if the champion is another one than expected, also if that came about just now.
        """
        by, reason = champions.described(by, reason)
        self._existing(name, version)
        while True:
            history, current = self._now(name)
            if current == version:
                self.get_champion(name)  # an alias that a kill left behind
                return history[-1].transition
            if expected is not ANY and current != expected:
                raise ChampionMoved(
                    f"The champion of {name!r} is {_words(current)}, not {_words(expected)}; compare version "
                    f"{version} with it, then `jora promote {version} --expect {current or 'none'}`."
                )
            move = Transition(PROMOTE, version, current, "", by, reason, verdict, airflow_run)
            if done := self._move(name, history, move):
                return done

    def rollback(self, name: str, *, by: str, reason: str, expected: Any = ANY) -> Transition:
        """Make the champion before the current one champion again, with the record of it.

        Args:
          expected: champion to go back from, else `ChampionMoved`; `ANY` is whoever it is.

        Returns:
          The record.

        Raises:
          InputError: if there is none before it that still exists.
          ChampionMoved: if another moved the champion meanwhile; what to go back to is then another question.
        """
        by, reason = champions.described(by, reason)
        known = {version.version for version in self.versions(name)}
        history, current = self._now(name)
        if expected is not ANY and current != expected:
            raise ChampionMoved(
                f"The champion of {name!r} is no longer version {expected}; look at it again."
            )
        transitions = [record.transition for record in history]
        earlier = [each for each in champions.earlier_champions(transitions) if each in known]
        if not earlier:
            raise InputError(
                f"{name!r} has no earlier champion to go back to; `jora promote` makes a version champion."
            )
        done = self._move(name, history, Transition(ROLLBACK, earlier[-1], current, "", by, reason))
        if done is None:
            raise ChampionMoved(
                f"The champion of {name!r} was moved by another just now; look at it, then `jora rollback`."
            )
        return done

    def download(self, adapter: RegisteredAdapter, folder: Path) -> Path:
        """Fetch a version's PEFT folder into ``folder`` and check it against its digest; see `fetch`."""
        self._client()
        return fetch(adapter, folder, self.location)

    def _existing(self, name: str, version: int) -> RegisteredAdapter:
        if found := self.get(name, version):
            return found
        known = ", ".join(str(each.version) for each in self.versions(name)) or "none"
        raise InputError(f"{name!r} has no version {version} in the registry; its versions: {known}.")

    def _history(self, name: str) -> list[Record]:
        """The records of a line that count, oldest first."""
        return [] if self._empty() else champions.counted(champions.read(self._client(), name))

    def _now(self, name: str) -> tuple[list[Record], int | None]:
        """The history and the champion's version; an alias from before there was a history begins one."""
        history = self._history(name)
        if not history and (found := self.get_alias(name, CHAMPION)):
            move = Transition(
                PROMOTE, found.version, None, "", "unknown", "champion before records were kept"
            )
            self._move(name, history, move)
            history = self._history(name)
        current = history[-1].transition.version if history else None
        return history, current if current is not None and self.get(name, current) else None

    def _move(self, name: str, history: Sequence[Record], move: Transition) -> Transition | None:
        """Record a move and set the alias; None if another came first."""
        after = history[-1].number if history else 0
        mine = Record(0, after, uuid.uuid4().hex, move)
        won = champions.write(self._client(), name, mine)
        self.get_champion(name)
        return won.transition if won.claim == mine.claim else None

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client().create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def _words(version: int | None) -> str:
    return "none" if version is None else f"version {version}"
