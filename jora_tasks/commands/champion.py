"""``jora promote`` and ``jora rollback``: the champion moved by hand."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Annotated

import typer

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.commands.options import JsonOption, SetOption, SpecOption, plain
from jora_tasks.errors import InputError
from jora_tasks.registry import ANY, Registry, Transition, actor
from jora_tasks.spec import load_spec

ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the record.", metavar="TEXT")]
ByOption = Annotated[
    str | None, typer.Option("--by", help="Who, for the record; by default the user.", metavar="NAME")
]


def promote(
    version: Annotated[int, typer.Argument(help="Registered version to make champion.", metavar="VERSION")],
    reason: ReasonOption = "",
    by: ByOption = None,
    expect: Annotated[
        str | None,
        typer.Option(
            "--expect", help="Do it only if this version, or none, is champion now.", metavar="VERSION|none"
        ),
    ] = None,
    spec: SpecOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a registered version the champion, by hand."""
    name, store = load_spec(spec, tuple(set_ or ())).name, ArtifactStore()
    done = Registry(store.home).promote(
        name,
        version,
        by=actor() if by is None else by,
        reason=reason,
        expected=_expected(expect),
        airflow_run=os.environ.get("JORA_AIRFLOW_RUN", ""),
    )
    _show(store, name, done, as_json)


def rollback(
    reason: ReasonOption = "",
    by: ByOption = None,
    spec: SpecOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give the champion's place back to the champion before."""
    name, store = load_spec(spec, tuple(set_ or ())).name, ArtifactStore()
    who = actor() if by is None else by
    _show(store, name, Registry(store.home).rollback(name, by=who, reason=reason), as_json)


def _expected(text: str | None) -> object:
    if text is None:
        return ANY
    if text == "none":
        return None
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"--expect {text!r} is no version; give its number, or none.")
    return int(text)


def _show(store: ArtifactStore, name: str, done: Transition, as_json: bool) -> None:
    if "JORA_AIRFLOW_RUN" not in os.environ:  # a task of Airflow tells it of its own
        from jora_tasks.events import tell_moves_here

        tell_moves_here(store, name)
    if as_json:
        told = {"name": name, "champion": done.version, "before": done.previous, "transition": asdict(done)}
        print(json.dumps(told), flush=True)
        return
    plain(
        f"champion: {name} version {done.version}" + (f", before: {done.previous}" if done.previous else "")
    )
    plain(f"  {done.action} at {done.at} by {done.by}" + (f": {done.reason}" if done.reason else ""))
