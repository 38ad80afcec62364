"""The page "Costs": what the lines of adapters took, a month at a time."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response

from jora_tasks import costs
from jora_tasks.airflow.pages import home
from jora_tasks.airflow.pages.rendering import page
from jora_tasks.airflow.pages.spending import Spending, Sum
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.errors import InputError, RunStopped
from jora_tasks.shared_store import SharedStore
from jora_tasks.variables import number_of

router = APIRouter()
LINES, MONTHS = 25, 12  # of a page

# So long what the shared store has told of a month is taken to be all, and so long a look fetches of it.
_LOOK_SECONDS, _FETCH_SECONDS = 10, 5

PRICE = "JORA_DEVICE_HOUR_PRICE"
"""Environment variable: what an hour of one device costs, in any currency; without it no price is shown."""


@router.get("/costs")
def show(request: Request, month: str = "", number: int = 1) -> Response:
    """One month by line and stage; the newest, if none is asked for."""
    store = home.store()
    costs.settle(store.home)
    known, trouble = _months(store)
    if month and month not in known:
        raise HTTPException(404, f"There are no records of {month}.")
    shown = month or (known[0] if known else "")
    files, trouble = _files(store, shown, trouble) if shown else ([], trouble)
    lines = list(_spending(store.home).of_month(shown, files).items())
    first = (max(number, 1) - 1) * LINES
    return page(
        request,
        "costs.html.j2",
        month=shown,
        months=_around(known, shown),
        lines=lines[first : first + LINES],
        number=max(number, 1),
        last=max(1, -(-len(lines) // LINES)),
        trouble=trouble,
        shared=store.shared is not None,
        price=number_of(PRICE, 0.0) / 3600 if os.environ.get(PRICE) else None,
    )


def _around(known: list[str], shown: str) -> list[str]:
    """The months to choose from: as many as a page has room for, the shown one among them."""
    place = known.index(shown) if shown in known else 0
    first = max(0, min(place - MONTHS // 2, len(known) - MONTHS))
    return known[first : first + MONTHS]


@lru_cache(maxsize=4)
def _spending(folder: Path) -> Spending:
    return Spending()


def _months(store: ArtifactStore) -> tuple[list[str], str]:
    """The months that have records, newest first; and why those of other machines are not told, if so."""
    known, trouble = set(costs.months(store.home)), ""
    if store.shared is not None:
        try:
            known.update(costs.shared_months(store.shared))
        except (InputError, RunStopped) as error:
            trouble = str(error)
        known.update(costs.copied_months(store.home, store.shared))
    return sorted(known, reverse=True), trouble


def _files(store: ArtifactStore, month: str, trouble: str) -> tuple[list[Path], str]:
    """The files with a month's records; and why what other machines added last is not among them, if so.

    Args:
      trouble: why the shared store is not to be asked; empty if it is.
    """
    own = costs.month_file(store.home, month)
    files = [own] if own.exists() else []
    if store.shared is not None:
        try:
            now = int(time.monotonic() // _LOOK_SECONDS)
            if not trouble and (lacking := _fetched(store.home, store.shared.url, month, now)):
                trouble = f"{lacking:,} files of records are still to be fetched; look again soon."
        except (InputError, RunStopped) as error:
            trouble = str(error)
        files += costs.copies(store.home, store.shared, month)
    return files, trouble


@lru_cache(maxsize=16)
def _fetched(folder: Path, url: str, month: str, now: int) -> int:
    return costs.fetch(folder, SharedStore(url, home.PATIENCE_SECONDS), month, _FETCH_SECONDS)


def cost_rows(
    store: ArtifactStore, run: str, began: datetime, ended: datetime | None
) -> list[tuple[str, Sum]]:
    """Stage → what its executions in an Airflow run took, in order; all of its tries.

    Args:
      run: ``dag_id/run_id``.
      began: when it was due.
      ended: if it has.
    """
    costs.settle(store.home)
    first, last = (each.astimezone(UTC).strftime("%Y-%m") for each in (began, ended or datetime.now(UTC)))
    known, trouble = _months(store)
    months = [month for month in known if first <= month <= last]
    rows: dict[str, Sum] = {}
    for cost in costs.of_run([file for month in months for file in _files(store, month, trouble)[0]], run):
        rows.setdefault(cost.stage, Sum()).add(cost)
    return list(rows.items())
