"""Pages that need nothing else: no script, no font, no address; light and dark, escaped throughout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def render_page(template: str, **values: Any) -> str:
    """One of this folder's templates as HTML; a name that the template lacks a value for is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def render_verdict(verdict: Mapping[str, Any]) -> str:
    """The page of a ``verdict.json``."""
    return render_page("verdict.html.j2", verdict=verdict)
