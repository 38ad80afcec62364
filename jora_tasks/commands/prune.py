"""``jora prune``: remove what nothing needs any more."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.commands.options import JsonOption, plain

_UNITS = ("B", "kB", "MB", "GB", "TB")


def prune(
    keep_days: Annotated[
        int,
        typer.Option(
            "--keep-days",
            min=1,
            max=36500,
            help="Keep what was made or used within so many days; more than any run takes.",
            metavar="N",
        ),
    ] = 30,
    keep_champions: Annotated[
        bool,
        typer.Option(
            "--keep-champions",
            help="Of the registered versions keep only those that are or were champion, or have an alias; "
            "without it every registered version keeps all that made it.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without it nothing is removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show, or remove with --yes, artifacts and left-over work that nothing needs.

    What stays: the lineage of registered versions, the latest of each name, what a process or an unfinished
    run uses, what is younger, and all that any of it was made from. The registry itself is left alone.
    """
    from jora_tasks.retention import prune as find

    store = ArtifactStore()
    done = find(store, keep_days=keep_days, champions_only=keep_champions, now=time.time(), remove=yes)
    told = done.by_kind()
    if as_json:
        shown = {
            "removed": yes,
            "keep_days": keep_days,
            "keep_champions": keep_champions,
            "bytes": sum(each.size for each in done.removals),
            "by_kind": told,
            "kept": done.kept,
            "items": [asdict(each) for each in done.removals],
        }
        print(json.dumps(shown), flush=True)
        return
    places = {"home": str(store.home), "shared": store.shared.url if store.shared else ""}
    for place, kinds in told.items():
        plain(f"{places[place]}: {done.kept[place]:,} artifacts stay")
        for kind, found in sorted(kinds.items()):
            done_or_not = "removed" if yes else "to remove"
            plain(f"  {kind:<12} {found['count']:>7,} {done_or_not}, {_bytes(found['bytes'])}")
    total = sum(each.size for each in done.removals)
    if not done.removals:
        plain("Nothing to remove.")
    elif yes:
        plain(f"Removed {len(done.removals):,}, {_bytes(total)}.")
    else:
        plain(f"Nothing was removed. With --yes {len(done.removals):,} go, {_bytes(total)}.")


def _bytes(count: float) -> str:
    """``1.2 GB`` (10⁹ bytes)."""
    power = 0
    while count >= 1000 and power < len(_UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:,.0f} {_UNITS[power]}" if power == 0 else f"{count:,.1f} {_UNITS[power]}"
