"""The text of a Word file: ``word/document.xml``, its headings written as Markdown headings.

The parts are read by themselves, each within a bound: pictures and fonts are never loaded.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from jora_tasks.errors import InputError
from jora_tasks.spec import DocumentsConfig

_BODY, _STYLES = "word/document.xml", "word/styles.xml"
# Word keeps a second version of a drawing's text for old readers, and what was deleted or moved away.
_LEFT_OUT = frozenset(("Fallback", "del", "moveFrom"))
_HEADING = re.compile(r"heading ([1-6])$")


def read_docx(stream: BinaryIO, source: str, config: DocumentsConfig) -> tuple[str, str]:
    """No title of its own, and paragraphs, lists and tables (a line a row, cells apart by ``|``).

    Raises:
      InputError: for a file that is damaged, encrypted or no Word file.
    """
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException

    try:
        with zipfile.ZipFile(stream) as parts:
            names = set(parts.namelist())
            if _BODY not in names:
                raise InputError(f"{source} is not a Word file: it has no {_BODY}; save it as .docx again.")
            for name in {_BODY, _STYLES} & names:
                if parts.getinfo(name).file_size > config.max_file_mib << 20:
                    raise InputError(
                        f"{source}: its {name} is larger than documents.max_file_mib "
                        f"({config.max_file_mib}); split it, or raise the bound."
                    )
            levels = _heading_levels(parts.open(_STYLES)) if _STYLES in names else {}
            with parts.open(_BODY) as body:
                text = "".join(_paragraphs(body, levels))
    except InputError:
        raise
    except DefusedXmlException:
        raise InputError(f"{source} declares XML entities, as no Word file does; save it again.") from None
    # an encoding that XML has not is a LookupError or ValueError, an encrypted part a RuntimeError
    except (ParseError, zipfile.BadZipFile, LookupError, ValueError, RuntimeError) as error:
        raise InputError(f"{source} is not a Word file that can be read ({error}); save it again.") from None
    return "", re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _events(stream: Any) -> Iterator[tuple[str, str, Any]]:
    """("start" or "end", name without namespace, element) of an XML part."""
    from defusedxml.ElementTree import iterparse

    for event, element in iterparse(stream, events=("start", "end"), forbid_dtd=True):
        yield event, element.tag.rpartition("}")[2], element


def _value(element: Any, name: str = "val") -> str:
    return next((value for key, value in element.attrib.items() if key.rpartition("}")[2] == name), "")


def _heading_levels(stream: Any) -> dict[str, int]:
    """Style id → level from 1: of headings by name, by outline or by the style they are based on."""
    levels: dict[str, int] = {}
    based_on: dict[str, str] = {}
    style = ""
    for event, name, element in _events(stream):
        if event == "start":
            style = _value(element, "styleId") if name == "style" else style
        elif name == "name" and style:
            words = _value(element).lower()
            if heading := _HEADING.match(words):
                levels[style] = int(heading[1])
            elif words == "title":
                levels[style] = 1
        elif name == "outlineLvl" and style and _value(element) in "012345":
            levels.setdefault(style, int(_value(element) or 0) + 1)
        elif name == "basedOn" and style:
            based_on[style] = _value(element)
        elif name == "style":
            style = ""
    for style in based_on:
        above, steps = style, 0
        while above not in levels and above in based_on and steps < len(based_on):
            above, steps = based_on[above], steps + 1
        if above in levels:
            levels.setdefault(style, levels[above])
    return levels


class _Paragraph:
    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.style = ""
        self.listed = False

    def written(self, levels: dict[str, int]) -> str:
        text = "".join(self.pieces).strip()
        if not text:
            return ""
        if self.style in levels:
            return f"\n\n{'#' * levels[self.style]} {' '.join(text.split())}\n\n"
        return f"\n- {text}\n" if self.listed else f"\n\n{text}\n\n"


_CHARACTERS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}


def _paragraphs(stream: Any, levels: dict[str, int]) -> Iterator[str]:
    """The body's blocks in order. Text boxes and tables nest, so what is open lies on stacks."""
    open_: list[_Paragraph] = []
    rows: list[list[str]] = []  # of each open table row, its cells so far
    left_out = properties = 0
    for event, name, element in _events(stream):
        step = 1 if event == "start" else -1
        if name in _LEFT_OUT:
            left_out += step
        elif name == "pPr":
            properties += step
        if left_out:
            continue
        if event == "start":
            if name == "p":
                open_.append(_Paragraph())
            elif name == "tr":
                rows.append([])
            elif name == "tc" and rows:
                rows[-1].append("")
        elif name == "p":
            block = open_.pop().written(levels)
            if rows and rows[-1]:
                rows[-1][-1] += f" {block.strip()}" if block else ""
            elif block:
                yield block
            element.clear()
        elif name == "tr":
            line = " | ".join(" ".join(cell.split()) for cell in rows.pop())
            if rows and rows[-1]:
                rows[-1][-1] += f" {line}"
            else:
                yield f"\n{line}\n"
        elif open_ and properties:
            if name == "pStyle":
                open_[-1].style = _value(element)
            elif name == "numPr":
                open_[-1].listed = True
        elif open_ and name == "t":
            open_[-1].pieces.append(element.text or "")
        elif open_ and name in _CHARACTERS:
            open_[-1].pieces.append(_CHARACTERS[name])
