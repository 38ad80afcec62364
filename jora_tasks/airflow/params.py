"""Trigger forms from `RunSpec`: each setting becomes a field with its type, bounds and description.

A param has the name that ``--set`` takes, as in ``training.epochs``.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow.sdk import Param, Variable
from airflow.sdk.exceptions import AirflowRuntimeError

from jora_tasks.airflow.runs import good_spec_file, good_spec_variable
from jora_tasks.artifacts import jora_home
from jora_tasks.digests import digest_file
from jora_tasks.errors import InputError
from jora_tasks.shared_store import ARTIFACTS
from jora_tasks.spec import (
    ALL_LINEAR,
    FUSED_PROJECTIONS,
    PATTERN_SIGN,
    PROJECTIONS,
    RunSpec,
    absolute,
    load_spec,
    parse_spec,
)

# The sections that each DAG's stages read; "name" stands for the setting outside any section.
DOCUMENT_INDEX_SECTIONS = ("name", "documents", "index")
ADAPTER_TRAINING_SECTIONS = (
    "name",
    "questions",
    "retrieval",
    "prompts",
    "model",
    "lora",
    "training",
    "evaluation",
    "gate",
    "registry",
)
SPEC_VARIABLE = "JORA_SPEC"

_SHORT_FORMS = {"lora": "LoRA", "fsdp": "FSDP", "rslora": "rsLoRA", "dtype": "type"}
_TARGETS = "lora.target_modules"
_PATHS = ("documents.path", "questions.path", "prompts.mix_path", "gate.canary_path", "lora.init_from")
# JSON Schema's words that a form and Airflow's check of a run's conf both use.
_RULES = (
    "type",
    "enum",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "pattern",
    "items",
    "additionalProperties",
)
# Types with an empty value. A form holds none for it, and refuses to be sent unless the type has "null" too.
_EMPTY: Mapping[str, Any] = {"string": "", "array": [], "object": {}}


@dataclass(frozen=True)
class Setting:
    """One leaf of the spec: its dotted name and its JSON Schema."""

    name: str
    schema: Mapping[str, Any]


@functools.cache
def settings() -> tuple[Setting, ...]:
    """Every setting of a run, in the spec's order."""
    root = RunSpec.model_json_schema()
    return tuple(_leaves(root, root["$defs"], ()))


def spec_params(sections: tuple[str, ...], spec: RunSpec) -> dict[str, Param]:
    """The form of a DAG: the settings of these sections, with the spec's values as defaults."""
    defaults = spec.model_dump(mode="json")
    return {
        setting.name: _param(setting, _get(defaults, setting.name))
        for setting in settings()
        if setting.name.partition(".")[0] in sections
    }


def base_spec() -> RunSpec:
    """The spec file named by ``$JORA_SPEC``, or the defaults if it is unset.

    Raises:
      InputError: for a missing or malformed file.
    """
    return load_spec(os.environ.get(SPEC_VARIABLE) or None)


def form_spec(dag_id: str) -> RunSpec:
    """What the form of a DAG begins with: the settings of its last good run by hand, else the spec file's.

    The spec file's, too, where it is another by now than when that run began, so that an edit of it is seen.

    Raises:
      InputError: for a missing or malformed spec file.
    """
    base = base_spec()
    try:
        begun_with, good = _good_spec(dag_id)
        return good() if begun_with == base_mark() else base
    except (OSError, ValueError, KeyError, TypeError, AirflowRuntimeError):  # none yet, or of another release
        return base


def base_mark() -> str:
    """A line that tells the spec file of `base_spec` from any other; a comment in YAML."""
    spec = os.environ.get(SPEC_VARIABLE)
    return f"# The spec file was {digest_file(Path(spec)) if spec else 'none'}."


def _good_spec(dag_id: str) -> tuple[str, Callable[[], RunSpec]]:
    """Which spec file the last good run by hand began with, and what reads its settings."""
    if not os.environ.get(ARTIFACTS):
        file = good_spec_file(jora_home(), dag_id)
        return file.read_text(encoding="utf-8").partition("\n")[0], lambda: load_spec(file)
    name = good_spec_variable(dag_id)
    kept = Variable.get(name, default=None, deserialize_json=True)
    if kept is None:
        raise FileNotFoundError(name)
    return kept["begun_with"], lambda: parse_spec(kept["spec"], source=f"The variable {name}")


def spec_from_params(params: Mapping[str, Any], base: RunSpec) -> RunSpec:
    """The run's spec: the base with the form's values.

    Paths relative to a folder are taken from that of ``$JORA_SPEC``, as in the file itself.

    Raises:
      InputError: for a name that is no setting, or values that do not go together.
    """
    known = {setting.name: str(setting.schema.get("type")) for setting in settings()}
    data = base.model_dump(mode="json")
    for name, value in params.items():
        if name not in known:
            raise InputError(
                f"The run's conf: {name} is not a setting; write section.field, as in training.epochs."
            )
        if value is None:
            value = _EMPTY.get(known[name])
        if (
            name == _TARGETS
            and isinstance(value, list)
            and len(value) == 1
            and value[0] not in PROJECTIONS + FUSED_PROJECTIONS
        ):
            (value,) = value
        elif name in _PATHS and isinstance(value, str):
            value = absolute(_spec_folder(), value)
        _set(data, name, value)
    return parse_spec(data, source="The run's conf")


def _param(setting: Setting, default: Any) -> Param:
    section, _, field = setting.name.rpartition(".")
    rules: dict[str, Any] = {word: setting.schema[word] for word in _RULES if word in setting.schema}
    if setting.name == _TARGETS:
        # One of a kind: a word, an expression or a list. As a list it is a field with several choices.
        choices = [ALL_LINEAR, *PROJECTIONS, *FUSED_PROJECTIONS]
        default = [default] if isinstance(default, str) else default
        rules = {
            "type": "array",
            "items": {"type": "string", "anyOf": [{"enum": choices}, {"pattern": PATTERN_SIGN}]},
            "examples": choices,
            "minItems": 1,
            "uniqueItems": True,
        }
    elif setting.name.endswith("instruction"):
        rules["format"] = "multiline"
    if _may_be_empty(rules):
        rules["type"] = [rules["type"], "null"]
    return Param(
        default,
        title=_title(field),
        description=setting.schema["description"],
        section=_title(section) or "Run",
        **rules,
    )


def _may_be_empty(rules: Mapping[str, Any]) -> bool:
    at_least = rules.get("minLength", rules.get("minItems", 0))
    matches = re.search(rules.get("pattern", ""), "") is not None
    return rules.get("type") in _EMPTY and "enum" not in rules and at_least == 0 and matches


def _title(name: str) -> str:
    """``lora_alpha`` → ``LoRA alpha``."""
    words = re.split(r"[._]", name)
    shown = " ".join(_SHORT_FORMS.get(word, word) for word in words)
    return shown[:1].upper() + shown[1:]


def _leaves(node: Mapping[str, Any], shared: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Setting]:
    for name, child in node["properties"].items():
        reference = child.get("$ref", "").rpartition("/")[2]
        if reference:
            yield from _leaves(shared[reference], shared, (*path, name))
        else:
            yield Setting(".".join((*path, name)), child)


def _get(data: Mapping[str, Any], name: str) -> Any:
    value: Any = data
    for part in name.split("."):
        value = value[part]
    return value


def _set(data: dict[str, Any], name: str, value: Any) -> None:
    *sections, field = name.split(".")
    for section in sections:
        data = data[section]
    data[field] = value


def _spec_folder() -> Path:
    spec = os.environ.get(SPEC_VARIABLE)
    return Path(spec).resolve().parent if spec else Path.cwd()
