"""OpenLineage events checked against the spec, and a server that takes them.

The spec's JSON schemas are not in OpenLineage's Python package, but the classes made from them are: each
knows the address of its schema. So the schemas are built again from these classes: which fields there are,
which are required, and of what type; a facet is checked against the class whose schema it names.
"""

from __future__ import annotations

import http.server
import importlib
import json
import pkgutil
import threading
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

import attr
from jsonschema import Draft202012Validator, FormatChecker

CORE = "https://openlineage.io/spec/"
_SCALARS: dict[Any, dict[str, Any]] = {
    str: {"type": "string"}, bool: {"type": "boolean"}, int: {"type": "integer"},
    float: {"type": "number"}, Any: {},
}  # fmt: skip
_FORMATS = {"eventTime": "date-time", "runId": "uuid", "producer": "uri", "schemaURL": "uri"}
_FACET = {
    "type": "object",
    "required": ["_producer", "_schemaURL"],
    "properties": {name: {"type": "string", "format": "uri"} for name in ("_producer", "_schemaURL")},
}


def schema_of(type_: Any, within: tuple[type, ...] = ()) -> dict[str, Any]:
    """JSON Schema of a type of the spec's classes; one that lies ``within`` itself is not checked deeper."""
    if type_ in _SCALARS:
        return _SCALARS[type_]
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if origin in (typing.Union, types.UnionType):
        choices = [schema_of(each, within) for each in arguments if each is not type(None)]
        return choices[0] if len(choices) == 1 else {"anyOf": choices}
    if origin is list:
        return {"type": "array", "items": schema_of(arguments[0], within)}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(arguments[1], within)}
    if isinstance(type_, type) and issubclass(type_, Enum):
        return {"enum": [each.value for each in type_]}
    if attr.has(type_) and type_ not in within:
        within = (*within, type_)
        hints = typing.get_type_hints(type_)
        fields = {each.name: each for each in attr.fields(type_) if each.name in hints}
        is_facet = "_producer" in fields
        named = {name: schema_of(hints[name], within) | _format(name) for name in fields}
        required = [name for name, each in fields.items() if each.default is attr.NOTHING]
        schema = {"type": "object", "properties": named, "required": required}
        return {"allOf": [_FACET, schema]} if is_facet else schema
    return {"type": "object"}


def _format(name: str) -> dict[str, Any]:
    return {"format": _FORMATS[name]} if name in _FORMATS else {}


def _classes() -> dict[str, type]:
    """Address of a schema → class."""
    import openlineage.client.generated as generated

    found = {}
    for module in pkgutil.iter_modules(generated.__path__):
        for value in vars(importlib.import_module(f"{generated.__name__}.{module.name}")).values():
            if attr.has(value) and "_get_schema" in vars(value):
                found[value._get_schema()] = value
    return found


CLASSES = _classes()


def problems(event: dict[str, Any]) -> list[str]:
    """What of an event is not as the spec has it; empty for a valid one."""
    found = []
    for value in (event, *facets(event)):
        address = value.get("schemaURL") or value.get("_schemaURL", "")
        if value is not event and not address.startswith(CORE):  # Airflow's: only the base
            schema = _FACET
        elif address not in CLASSES:
            found.append(f"no schema {address!r}")
            continue
        else:
            schema = schema_of(CLASSES[address])
        validator = Draft202012Validator(schema, format_checker=FormatChecker())
        found += [f"{address}: {error.json_path} {error.message}" for error in validator.iter_errors(value)]
    return found


def facets(event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every facet of an event's run, job and datasets."""
    parts = [event["run"], event["job"], *event.get("inputs", []), *event.get("outputs", [])]
    for part in parts:
        for field in ("facets", "inputFacets", "outputFacets"):
            yield from (part.get(field) or {}).values()


@contextmanager
def lineage_server(
    answers: list[int] | None = None, port: int = 0
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that takes events at ``/api/v1/lineage``; gives its address and what it took.

    Args:
      answers: status codes of the next answers, used up; then 201.
      port: to listen on; 0 takes a free one.
    """
    taken: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = answers.pop(0) if answers else 201
            if self.path != "/api/v1/lineage":
                status = 404
            if status == 201:
                taken.append(json.loads(body) | {"authorization": self.headers.get("Authorization")})
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", taken
        server.shutdown()
