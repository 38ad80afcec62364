"""Who made which version champion, when, why and in place of which: the history of a line.

MLflow has no compare-and-swap, but it numbers the versions of a model, each number once. So the history of
``documents`` is a registered model of its own, ``documents.champions``, each version of which is one record:
a copy of the version that it made champion, in MLflow's way of promoting, with tags that say the rest.
A record names the record that it follows. Of several that follow the same one, that with the lowest number
counts and the others never happened; so of two that move the champion at once, one wins, and everyone who
reads the history sees the same one. The alias is set after the record and only repeats it.

What holds on a server: all of this, where it keeps its registry in a database, as MLflow servers do (the
number is the primary key). One with a registry in a folder of files may give two records one number.
Nothing here alters or removes a record; MLflow itself lets those do it who may edit its models.
"""

from __future__ import annotations

import getpass
import itertools
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from jora_tasks.errors import InputError
from jora_tasks.registry.client import CONTENDED, PAUSE_SECONDS, TRIES

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROMOTE: Final = "promote"
ROLLBACK: Final = "rollback"
ANY: Final = object()
"""Whatever champion there is; see `Registry.promote`."""

# A dot is in no line's name, so a history is never taken for one.
_HISTORY = ".champions"
_LONGEST_REASON, _LONGEST_NAME = 2000, 200


class ChampionMoved(InputError):
    """The champion is not the one that was to be replaced: someone else was faster."""


@dataclass(frozen=True)
class Transition:
    """One move of the champion's alias.

    Attributes:
      version: that is champion since.
      previous: that was champion until then, if any.
      at: time by the registry's clock, ISO 8601 in UTC.
      by: who moved it.
      verdict: key of the gate's verdict, if one was the reason.
      airflow_run: ``dag_id/run_id`` of the run that did it, if one did.
    """

    action: Literal["promote", "rollback"]
    version: int
    previous: int | None
    at: str
    by: str
    reason: str
    verdict: str = ""
    airflow_run: str = ""


@dataclass(frozen=True)
class Record:
    """A transition as it was written; whether it counts, `counted` says.

    Attributes:
      number: its place in the history, from 1.
      after: number of the record that it follows, 0 for the first.
      claim: of the writer alone, so that it knows its own.
    """

    number: int
    after: int
    claim: str
    transition: Transition


def history_of(name: str) -> str:
    """The registered model that holds the history of a line."""
    return f"{name}{_HISTORY}"


def is_history(name: str) -> bool:
    return name.endswith(_HISTORY)


def counted(records: Iterable[Record]) -> list[Record]:
    """The records that happened, oldest first: each follows the one before it, the first to do so.

    A record after one that is no longer there counts: someone has removed that from MLflow.
    """
    kept: list[Record] = []
    for record in sorted(records, key=lambda each: each.number):
        if record.after >= (kept[-1].number if kept else 0):
            kept.append(record)
    return kept


def earlier_champions(transitions: Sequence[Transition]) -> list[int]:
    """Versions to roll back to, the nearest last; what was rolled back is not among them."""
    champions: list[int] = []
    for each in transitions:
        if not champions and each.previous is not None:
            champions.append(each.previous)
        if each.action == ROLLBACK and each.version in champions:
            while champions[-1] != each.version:
                champions.pop()
        else:
            champions.append(each.version)
    return champions[:-1]


def checked(text: str, what: str, longest: int) -> str:
    """A name or reason as one line.

    Raises:
      InputError: if it is too long.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) > longest:
        raise InputError(f"{what} has {len(line)} characters; give at most {longest}.")
    return line


def described(by: str, reason: str) -> tuple[str, str]:
    """Who and why, as they are recorded; see `checked`."""
    by = checked(by, "by", _LONGEST_NAME)
    if not by:
        raise InputError("by is empty; say who moves the champion.")
    return by, checked(reason, "reason", _LONGEST_REASON)


def actor() -> str:
    """Who works here: the Airflow run that this process belongs to, else the user."""
    if run := os.environ.get("JORA_AIRFLOW_RUN"):
        return f"Airflow run {run}"
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return f"user {os.getuid()}"


def read(client: MlflowClient, name: str) -> list[Record]:
    """All records of a line, those that do not count too."""
    found, page = [], None
    while True:
        batch = client.search_model_versions(f"name = '{history_of(name)}'", page_token=page)
        found += [_record(version) for version in batch]
        page = batch.token
        if not page:
            return [each for each in found if each is not None]


def write(client: MlflowClient, name: str, record: Record) -> Record:
    """Append a record, unless another was faster.

    Args:
      record: without its number and time, which the registry gives.

    Returns:
      The record that counts now after ``record.after``: this one, if its claim is the same.
    """
    from mlflow.exceptions import MlflowException

    if record.after == 0:
        _ensure_history(client, name)
    for tries in itertools.count(1):
        later = [each for each in counted(read(client, name)) if each.number > record.after]
        if later:
            return later[0]
        try:
            client.create_model_version(
                history_of(name),
                source=f"models:/{name}/{record.transition.version}",
                tags=_tags(record),
                description=_sentence(name, record.transition),
            )
        except MlflowException as error:
            # Many at once, or an answer that was lost: reading again tells what came of it.
            if error.error_code not in CONTENDED or tries == TRIES:
                raise
            time.sleep(PAUSE_SECONDS * tries)
    raise AssertionError


def _ensure_history(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(history_of(name), description=f"Who made which {name} champion.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _tags(record: Record) -> dict[str, str]:
    told = asdict(record.transition) | {"after": record.after, "claim": record.claim}
    del told["at"]  # the registry's clock tells it
    return {f"jora.{key}": str(value) for key, value in told.items() if value not in (None, "")}


def _record(version: Any) -> Record | None:
    """MLflow's model version as a record; None if it is none."""
    tags = {key.removeprefix("jora."): value for key, value in version.tags.items()}
    try:
        return Record(
            number=int(version.version),
            after=int(tags["after"]),
            claim=tags["claim"],
            transition=Transition(
                action=ROLLBACK if tags["action"] == ROLLBACK else PROMOTE,
                version=int(tags["version"]),
                previous=int(tags["previous"]) if "previous" in tags else None,
                at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(version.creation_timestamp / 1000)),
                by=tags["by"],
                reason=tags.get("reason", ""),
                verdict=tags.get("verdict", ""),
                airflow_run=tags.get("airflow_run", ""),
            ),
        )
    except (KeyError, ValueError):
        return None


def _sentence(name: str, transition: Transition) -> str:
    done = "promoted" if transition.action == PROMOTE else "rolled back to"
    over = "" if transition.previous is None else f" in place of version {transition.previous}"
    why = f": {transition.reason}" if transition.reason else ""
    return f"{name} version {transition.version} {done}{over} by {transition.by}{why}"
