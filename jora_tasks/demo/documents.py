"""Real text that every installation has: Airflow's configuration reference and Python's topics.

Airflow itself is not imported: its reference is a YAML file, and each provider's is a dictionary
in a file that imports nothing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import runpy
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jora_tasks.errors import InputError

# Kinds of facts, with the label of the line that states each.
FACTS = {
    "section": "Section",
    "type": "Type",
    "default": "Default",
    "version": "Version added",
    "environment": "Environment variable",
}


@dataclass(frozen=True)
class Option:
    """One configuration option; ``facts`` maps a kind of `FACTS` to its value, where it has one."""

    section: str
    name: str
    description: str
    example: str
    sensitive: bool
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Section:
    """One section of the configuration reference."""

    name: str
    description: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class SectionDocument:
    """A section as Markdown.

    Attributes:
      path: relative path of the document, its id too.
      lines: (option name, kind of fact) → start and end of the line that states it.
    """

    section: Section
    path: str
    text: str
    lines: Mapping[tuple[str, str], tuple[int, int]]


def airflow_sections() -> list[Section]:
    """The sections of Airflow's reference and of each installed provider's, sorted by name.

    Raises:
      InputError: if Airflow is not installed.
    """
    found = importlib.util.find_spec("airflow")
    if found is None or not found.submodule_search_locations:
        raise InputError("The demo reads Airflow's configuration reference; install apache-airflow.")
    reference = Path(next(iter(found.submodule_search_locations))) / "config_templates" / "config.yml"
    merged: dict[str, dict[str, Any]] = {}
    for part in (yaml.safe_load(reference.read_text(encoding="utf-8")), *_provider_references()):
        for name, section in part.items():
            kept = merged.setdefault(name, {"description": section.get("description"), "options": {}})
            kept["options"] = {**section.get("options", {}), **kept["options"]}
    return [
        Section(
            name,
            _clean(section["description"]),
            tuple(_option(name, key, value) for key, value in section["options"].items()),
        )
        for name, section in sorted(merged.items())
    ]


def python_topics() -> dict[str, str]:
    """CPython's help topics: file name without suffix → text."""
    from pydoc_data.topics import topics

    return {
        re.sub(r"[^A-Za-z0-9_-]", "_", name): _clean(text) + "\n" for name, text in sorted(topics.items())
    }


def section_document(section: Section) -> SectionDocument:
    """Write a section: a heading for each option, its facts a line each, then its description."""
    text = f"# Airflow configuration: {section.name}\n"
    if section.description:
        text += f"\n{section.description}\n"
    lines: dict[tuple[str, str], tuple[int, int]] = {}
    for option in section.options:
        text += f"\n## {option.name}\n\n"
        for kind, label in FACTS.items():
            if kind in option.facts:
                line = f"- {label}: {option.facts[kind]}"
                lines[option.name, kind] = len(text), len(text) + len(line)
                text += f"{line}\n"
        if option.example:
            text += f"- Example: {option.example}\n"
        if option.description:
            text += f"\n{option.description}\n"
    return SectionDocument(section, f"airflow/{section.name}.md", text, lines)


def _provider_references() -> Iterator[dict[str, Any]]:
    """The configuration that installed providers describe, by provider name."""
    points = [
        (distribution.metadata["Name"], distribution, point)
        for distribution in importlib.metadata.distributions()
        for point in distribution.entry_points
        if point.group == "apache_airflow_provider"
    ]
    for _, distribution, point in sorted(points, key=lambda each: each[0]):
        file = Path(str(distribution.locate_file(point.module.replace(".", "/") + ".py")))
        if file.is_file():
            yield runpy.run_path(str(file))[point.attr]().get("config") or {}


def _option(section: str, name: str, value: Mapping[str, Any]) -> Option:
    known = {
        "section": section,
        "type": value.get("type"),
        "default": value.get("default"),
        "version": value.get("version_added"),
        # as airflow.configuration names it
        "environment": f"AIRFLOW__{section.replace('.', '_').upper()}__{name.upper()}",
    }
    facts = {kind: " ".join(str(fact).split()) for kind, fact in known.items() if fact not in (None, "")}
    return Option(
        section=section,
        name=name,
        description=_clean(value.get("description")),
        example=" ".join(str(value.get("example") or "").split()),
        sensitive=bool(value.get("sensitive")),
        facts={kind: fact for kind, fact in facts.items() if fact},
    )


def _clean(text: str | None) -> str:
    """NFC text; a line that Markdown would take for a heading is indented."""
    lines = unicodedata.normalize("NFC", text or "").strip().split("\n")
    return "\n".join(f"    {line}" if line.startswith("#") else line.rstrip() for line in lines)
