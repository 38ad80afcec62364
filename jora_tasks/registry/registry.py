"""The registry itself: the registered versions, and the champion's place among them, which is moved."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from jora_tasks.errors import InputError
from jora_tasks.registry import champions
from jora_tasks.registry.champions import ANY, PROMOTE, ROLLBACK, ChampionMoved, Record, Transition
from jora_tasks.registry.registered import RegisteredAdapters
from jora_tasks.registry.versions import CHAMPION, COMPARED_WITH, VERDICT_KEY, RegisteredAdapter


class Registry(RegisteredAdapters):
    """The adapters registered in a home, or on a server; see `Connection`."""

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
          verdict: key of the verdict that is the reason; by default the one that it was registered with.
          airflow_run: ``dag_id/run_id`` of the run that does it, if one does.

        Returns:
          The record; of the champion itself, the one that made it so.

        Raises:
          InputError: if there is no such version.
          ChampionMoved: if the champion is another one than expected, also if that came about just now.
        """
        by, reason = champions.described(by, reason)
        found = self._existing(name, version)
        verdict = verdict or found.tags.get(VERDICT_KEY, "")
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


def _words(version: int | None) -> str:
    return "none" if version is None else f"version {version}"
