"""Lines and versions a page at a time, each page in one or two requests, however many there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from jora_tasks.errors import InputError
from jora_tasks.registry import champions
from jora_tasks.registry.versions import CANDIDATE, CHAMPION, EVALUATION_KEY, VERDICT_KEY, RegisteredAdapter

if TYPE_CHECKING:
    from mlflow import MlflowClient

Item = TypeVar("Item")


@dataclass(frozen=True)
class Listing(Generic[Item]):
    """Some of many: ``token`` gives the next ones, and is empty at the end."""

    items: tuple[Item, ...] = ()
    token: str = ""


@dataclass(frozen=True)
class Line:
    """A line of adapters.

    Attributes:
      aliases: alias → version.
      newest: the highest version, None if there is none any more.
      changed: when it was last changed, ISO 8601 in UTC.
    """

    name: str
    aliases: Mapping[str, int]
    newest: int | None
    changed: str

    @classmethod
    def of(cls, model: Any) -> Line:
        """MLflow's registered model as one of ours."""
        newest = max((int(version.version) for version in model.latest_versions), default=None)
        aliases = {
            alias: int(version) for alias, version in model.aliases.items() if alias in (CANDIDATE, CHAMPION)
        }
        return cls(model.name, aliases, newest, _iso(model.last_updated_timestamp))


@dataclass(frozen=True)
class Listed:
    """A version with the figures of its run.

    Attributes:
      registered: when, ISO 8601 in UTC.
      metrics: as they were given to `Registry.register`; empty if the run is gone.
    """

    adapter: RegisteredAdapter
    registered: str
    description: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def evaluation_key(self) -> str:
        """Key of the evaluation artifact in the home that made it; empty if not recorded."""
        return self.adapter.tags.get(EVALUATION_KEY, "")

    @property
    def verdict_key(self) -> str:
        """Key of the verdict artifact in the home that made it; empty if not recorded."""
        return self.adapter.tags.get(VERDICT_KEY, "")


def lines(client: MlflowClient, size: int, token: str) -> Listing[Line]:
    """Lines by name; a page may have fewer than ``size``, since histories are left out."""
    found = _page(lambda: client.search_registered_models(max_results=size, page_token=token or None))
    return Listing(
        tuple(Line.of(model) for model in found if not champions.is_history(model.name)), found.token or ""
    )


def line(client: MlflowClient, name: str) -> Line | None:
    """One line, or None."""
    if "'" in name:
        return None
    found = client.search_registered_models(f"name = '{name}'", max_results=1)
    return Line.of(found[0]) if found and not champions.is_history(name) else None


def versions(client: MlflowClient, name: str, size: int, token: str) -> Listing[Listed]:
    """Versions of a line, newest first, with their runs' figures."""
    found = _page(
        lambda: client.search_model_versions(
            f"name = '{name}'",
            max_results=size,
            order_by=["version_number DESC"],
            page_token=token or None,
        )
    )
    return Listing(tuple(_with_metrics(client, found)), found.token or "")


def version(client: MlflowClient, name: str, number: int) -> Listed | None:
    """One version with its run's figures, or None."""
    found = model_version(client, name, number)
    return _with_metrics(client, [found])[0] if found is not None else None


def model_version(client: MlflowClient, name: str, number: int) -> Any:
    """MLflow's record of a version, or None."""
    from mlflow.exceptions import MlflowException

    if not 0 < number < 2**31:  # more than a registry's number can be
        return None
    try:
        return client.get_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _with_metrics(client: MlflowClient, found: Any) -> list[Listed]:
    ids = [each.run_id for each in found if each.run_id]
    runs: dict[str, Mapping[str, float]] = {}
    if ids:
        experiments = client.search_experiments(filter_string=f"name = '{found[0].name}'", max_results=1)
        quoted = ", ".join(f"'{each}'" for each in ids)
        for run in client.search_runs(
            [each.experiment_id for each in experiments],
            f"attributes.run_id IN ({quoted})",
            max_results=len(ids),
        ):
            runs[run.info.run_id] = run.data.metrics
    return [
        Listed(
            RegisteredAdapter.of(each),
            _iso(each.creation_timestamp),
            each.description or "",
            runs.get(each.run_id, {}),
        )
        for each in found
    ]


def _page(search: Any) -> Any:
    """A page of a search, unless its token is none of MLflow's."""
    from mlflow.exceptions import MlflowException

    try:
        return search()
    except (MlflowException, ValueError, KeyError) as error:
        if isinstance(error, MlflowException) and error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        raise InputError("There is no such page; begin with the newest.") from None


def _iso(milliseconds: int | None) -> str:
    moment = datetime.fromtimestamp((milliseconds or 0) / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
