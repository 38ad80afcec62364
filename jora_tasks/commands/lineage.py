"""``jora lineage``: what made an adapter, and whether all of it is still what it was."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.commands.options import JsonOption, SetOption, SpecOption, console, plain
from jora_tasks.errors import InputError
from jora_tasks.spec import load_spec


def lineage(
    adapter: Annotated[
        str, typer.Argument(help="Key of the adapter, or the start of it; champion or candidate.")
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Recompute every digest, and check the signed statement.")
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option("--key", help="PEM file of the public key that signed, with --verify.", metavar="FILE"),
    ] = None,
    spec: SpecOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show everything that made an adapter, down to the documents; exit 1 if --verify finds it changed."""
    from jora_tasks.adapters import aliased

    store = ArtifactStore()
    if registered := aliased(adapter, store, load_spec(spec, tuple(set_ or ())).name):
        adapter = registered.key
    if verify:
        _verify(store, adapter, key, as_json)
        return
    if key is not None:
        raise InputError("--key is the key of a signature; give --verify as well.")
    from jora_tasks.lineage import render, trace

    tree = trace(store, store.get("adapter", adapter))
    if as_json:
        print(json.dumps(tree), flush=True)
    else:
        console.print(render(tree))


def _verify(store: ArtifactStore, adapter: str, key: Path | None, as_json: bool) -> None:
    from jora_tasks.provenance import FAILED, verify

    links = verify(store, adapter, key)
    verified = all(link.state != FAILED for link in links)
    if as_json:
        told = {"adapter": adapter, "verified": verified, "links": [asdict(link) for link in links]}
        print(json.dumps(told), flush=True)
    else:
        for link in links:
            plain(f"{link.state:<9}  {link.name}" + (f": {link.detail}" if link.detail else ""))
    if not verified:
        raise typer.Exit(1)
