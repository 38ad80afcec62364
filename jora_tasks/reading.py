"""Text and JSON that people write: read whole, or refused by file and line."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jora_tasks.errors import InputError


@contextlib.contextmanager
def unreadable_refused(what: str) -> Iterator[None]:
    """Turn what the system says of a file or folder into an `InputError` that names it.

    Args:
      what: field and path of what is read; a path within it is named too.
    """
    try:
        yield
    except OSError as error:
        inner = f": {error.filename}" if error.filename and str(error.filename) not in what else ""
        raise InputError(
            f"{what}{inner} cannot be read ({error.strerror or type(error).__name__}); "
            "name another or mend its permissions."
        ) from None


def read_text(path: Path, what: str = "") -> str:
    """A file's text, its byte-order mark taken off and its lines ended by ``\\n``.

    Args:
      path: a UTF-8 file.
      what: how to name it in an error; the path by default.

    Raises:
      InputError: if it cannot be read or is not UTF-8.
    """
    what = what or str(path)
    with unreadable_refused(what):
        try:
            return path.read_text(encoding="utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise InputError(f"{what} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
        except ValueError as error:  # a zero byte in the path
            raise InputError(f"{what!r} is not a path ({error}); name another.") from None


def parse_rows(text: str, path: Path) -> Iterator[tuple[Any, str]]:
    """The items of a JSON list, or the values of JSON lines, each with the place to name in an error.

    Raises:
      InputError: as `parse_lines`.
    """
    if not text.lstrip().startswith("["):
        for number, value in parse_lines(text, path):
            yield value, f"{path}:{number}"
        return
    for number, item in enumerate(_parse(text, path), start=1):
        place = f"{path} item {number}"
        _check_unicode(item, place)
        yield item, place


def parse_lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """The values of JSON lines, each with its line's number; empty lines are left out.

    Raises:
      InputError: for a line that is not JSON, or is none that can be kept: nested too deeply, or
        with half of a surrogate pair; file and line are named.
    """
    # split on newlines alone: JSON strings may hold U+2028 and other line separators
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, parse_line(line, f"{path}:{number}")


def parse_line(line: str, place: str) -> Any:
    """The value of one JSON line.

    Args:
      place: what to name in an error.

    Raises:
      InputError: as `parse_lines`.
    """
    value = _parse(line, place)
    if "\\u" in line:  # nothing but an escape brings half a pair into text that was UTF-8
        _check_unicode(value, place)
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file, such as a model's configuration.

    Raises:
      InputError: if it cannot be read or is not one.
    """
    value = _parse(read_text(path), path, of_people=False)
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object; mend it, or fetch it again.")
    return value


def _parse(text: str, place: Path | str, of_people: bool = True) -> Any:
    """The value of a text; an error names its line, unless the place does so already.

    Args:
      of_people: refuse a name that an object has twice; a model's files are taken as they are.
    """
    line = None
    try:
        return json.loads(text, object_pairs_hook=_object if of_people else None)
    except json.JSONDecodeError as error:
        line, reason = error.lineno, f"{error.msg}, column {error.colno}"
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:  # a name given twice, or a number of thousands of digits
        reason = str(error).split(";")[0]
    if line and isinstance(place, Path):
        place = f"{place}:{line}"
    raise InputError(f"{place} is not JSON that can be read ({reason}); mend it there.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a name given twice the first value would be lost without a word."""
    made = dict(pairs)
    if len(made) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{twice!r} is given twice")
    return made


def _check_unicode(value: Any, place: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise InputError(
            f"{place} has half of a surrogate pair, {half}; write the whole character."
        ) from None
    except RecursionError:
        raise InputError(f"{place} is nested too deeply; write it flat.") from None
