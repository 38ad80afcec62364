"""Specs from YAML files and ``--set key=value``, and back."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from jora_tasks.errors import InputError
from jora_tasks.spec.run import RunSpec
from jora_tasks.spec.section import SECRET, absolute


def parse_spec(
    data: dict[str, Any], source: str = "spec", overrides: Mapping[tuple[str, ...], str] | None = None
) -> RunSpec:
    """Validate nested settings.

    Args:
      data: nested mapping, as read from YAML.
      source: what to call the data in an error, usually its file.
      overrides: place of a setting → what to call the data there instead.

    Raises:
      InputError: naming the first bad field, what is wrong and what it must be.
    """
    try:
        return RunSpec.model_validate(data)
    except ValidationError as error:
        at = error.errors()[0]["loc"]
        for place, named in (overrides or {}).items():
            if at[: len(place)] == place[: len(at)]:
                source = named
        raise InputError(_explain(error, source)) from None


def load_spec(path: str | Path | None, overrides: tuple[str, ...] = ()) -> RunSpec:
    """Read a YAML spec and apply ``key.subkey=value`` overrides, values parsed as YAML.

    Relative ``documents.path``, ``questions.path``, ``prompts.mix_path``, ``gate.canary_path`` and
    ``lora.init_from`` are taken from the spec file's folder, and become absolute.

    Raises:
      InputError: for a missing or malformed file, an unknown field or a value out of bounds.
    """
    data: dict[str, Any] = {}
    folder = Path.cwd()
    if path is not None:
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = (getattr(error, "strerror", None) or "not UTF-8 text").lower()
            raise InputError(f"--spec {file}: {reason}; give the path of a YAML spec.") from None
        loaded = _yaml(text, f"--spec {file}")
        if loaded is not None and not isinstance(loaded, dict):
            raise InputError(f"--spec {file} must be a mapping of settings, not a {type(loaded).__name__}.")
        data = loaded or {}
        folder = file.resolve().parent
    given = {_set(data, override): f"--set {override!r}" for override in overrides}
    spec = parse_spec(data, str(path or "spec"), given)
    return spec.model_copy(
        update={
            "documents": spec.documents.model_copy(update={"path": absolute(folder, spec.documents.path)}),
            "questions": spec.questions.model_copy(update={"path": absolute(folder, spec.questions.path)}),
            "prompts": spec.prompts.model_copy(update={"mix_path": absolute(folder, spec.prompts.mix_path)}),
            "gate": spec.gate.model_copy(update={"canary_path": absolute(folder, spec.gate.canary_path)}),
            "lora": spec.lora.model_copy(update={"init_from": absolute(folder, spec.lora.init_from)}),
        }
    )


def dump_spec(spec: RunSpec) -> str:
    """The spec as YAML that `load_spec` reads back to an equal spec."""
    return yaml.safe_dump(json.loads(spec.model_dump_json()), sort_keys=False)


def _set(data: dict[str, Any], override: str) -> tuple[str, ...]:
    """Put an override into the settings; returns its place."""
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise InputError(f"--set {override!r} must look like section.field=value, as in training.epochs=2.")
    *sections, field = key.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise InputError(f"--set {override!r}: {section} is a value, not a section of settings.")
    data[field] = _yaml(value, f"--set {override!r}")
    return (*sections, field)


class _Loader(yaml.SafeLoader):
    """YAML without two surprises: a key given twice, and 1e-4 read as text (YAML 1.1 wants 1.0e-4)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            line = node.start_mark.line + 1
            raise ValueError(f"{twice[0]} is given twice in the mapping from line {line} on")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except RecursionError:
        raise InputError(f"{source} is nested too deeply to be settings.") from None
    # PyYAML lets Python's own errors through for tagged and odd values, such as the date 2020-13-45.
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{source} is not valid YAML: {' '.join(str(error).split())[:300]}.") from None


def _explain(error: ValidationError, source: str) -> str:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "the spec"
    if first["type"] == "extra_forbidden":
        return f"{source}: {field} is not a setting; {_siblings(first['loc'])}."
    if first["type"] == "model_type":
        return f"{source}: {field} must be a mapping of settings, as in {field}: {{name: value}}."
    value = first["input"]
    if isinstance(value, tuple):
        value = list(value)  # as it was written
    hidden = first["type"] == SECRET or isinstance(value, dict | BaseModel)
    shown = "" if hidden else f" (got {reprlib.repr(value)})"
    if first["type"] == "string_pattern_mismatch":
        return f"{source}: {field}{shown} {_form(first)}"
    if first["type"] == "too_short":
        return f"{source}: {field}{shown} must not be empty; name at least {first['ctx']['min_length']}."
    message = first["msg"].removeprefix("Value error, ")
    return f"{source}: {field}{shown}: {message[0].lower()}{message[1:]}."


def _form(error: ErrorDetails) -> str:
    """What a text must be like, in words instead of the pattern's."""
    if r"\x00" in error["ctx"]["pattern"]:
        return "must be a text without a zero byte."
    *sections, name = error["loc"]
    return f"is not what it must be. {_section(sections).model_fields[name].description}"


def _siblings(location: tuple[int | str, ...]) -> str:
    return f"the settings there are {', '.join(_section(location[:-1]).model_fields)}"


def _section(location: Sequence[int | str]) -> Any:
    """The section of settings at a place in the spec."""
    section: Any = RunSpec
    for part in location:
        section = section.model_fields[part].annotation
    return section
