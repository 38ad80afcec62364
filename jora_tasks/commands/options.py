"""What every command takes and how it speaks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jora_tasks.characters import visible

console = Console()

SpecOption = Annotated[
    Path | None, typer.Option("--spec", help="YAML file of settings; without it the defaults.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting, as in training.epochs=2.", metavar="K=V"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def spec_or_demo(spec: Path | None, home: Path) -> Path | None:
    """The spec that was given; without one that of the demo, if it ran in this home."""
    from jora_tasks.demo.drive import spec_file

    demo = spec_file(home)
    return demo if spec is None and demo.is_file() else spec


def plain(text: str) -> None:
    """A line that is never wrapped, coloured or read as markup, so that a path can be copied.

    What a terminal would obey is shown: names may be a document's.
    """
    console.print(visible(text), markup=False, highlight=False, soft_wrap=True)
