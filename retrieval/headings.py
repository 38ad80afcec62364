"""Where the headings of a text are: Markdown and reStructuredText, by plain rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Headings of HTML and Word files have become Markdown's.
MARKDOWN = (".md", ".html", ".htm", ".docx", ".jsonl", ".csv", ".tsv", ".parquet")
RESTRUCTURED = (".rst",)

_LONGEST = 200  # characters: every chunk below a heading carries it
_ATX = re.compile(r" {0,3}(#{1,6})[ \t]")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_SETEXT = re.compile(r"(={3,}|-{3,})[ \t]*$")
_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1{2,}[ \t]*$")


@dataclass(frozen=True)
class Heading:
    """A heading line: where it starts in the text, its level from 1, its words as `shortened` has them."""

    start: int
    level: int
    title: str


def find_headings(text: str, suffix: str) -> list[Heading]:
    """The headings in order, by the file's suffix; none for a suffix without a syntax for them."""
    if suffix in MARKDOWN:
        return list(_markdown(text))
    if suffix in RESTRUCTURED:
        return list(_restructured(text))
    return []


def first_heading(text: str, suffix: str) -> str:
    """The words of the first heading, or an empty string."""
    headings = find_headings(text, suffix)
    return headings[0].title if headings else ""


def shortened(title: str) -> str:
    """A title of at most 200 characters; a longer one ends in ``…``."""
    return title if len(title) <= _LONGEST else f"{title[: _LONGEST - 1].rstrip()}…"


def _lines(text: str) -> list[tuple[int, str]]:
    """Each line with the position it starts at."""
    lines, start = [], 0
    for line in text.split("\n"):
        lines.append((start, line))
        start += len(line) + 1
    return lines


def _markdown(text: str) -> Iterator[Heading]:
    lines = _lines(text)
    fence = ""
    for number, (start, line) in enumerate(lines):
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not line[mark.end() :].strip():
                fence = ""
        elif mark:
            fence = mark[1]
        elif (found := _ATX.match(line)) and (title := _without_closing(line[found.end() :])):
            yield Heading(start, len(found[1]), shortened(title))
        elif _SETEXT.match(line) and number and _stands_alone(lines, number - 1):
            above_start, above = lines[number - 1]
            yield Heading(above_start, 1 if line[0] == "=" else 2, shortened(above.strip()))


def _without_closing(title: str) -> str:
    """The words of an ATX heading, without the ``#`` that may close it."""
    title = title.strip(" \t")
    words = title.rstrip("#")
    return words.rstrip(" \t") if words.endswith((" ", "\t")) else title


def _stands_alone(lines: list[tuple[int, str]], number: int) -> bool:
    """Whether a line can be an underlined heading: one line of words after a blank one."""
    line = lines[number][1]
    starts_as_words = bool(line.strip()) and not line.startswith((" ", "\t", "#", "-", "=", "|", ">"))
    return starts_as_words and (number == 0 or not lines[number - 1][1].strip())


def _restructured(text: str) -> Iterator[Heading]:
    lines = _lines(text)
    styles: list[tuple[str, bool]] = []  # levels in order of appearance, as docutils has them
    for number in range(1, len(lines)):
        (start, title), (_, under) = lines[number - 1], lines[number]
        mark = _ADORNMENT.match(under)
        if (
            not mark
            or not title.strip()
            or _ADORNMENT.match(title)
            or len(under.rstrip()) < len(title.rstrip())
        ):
            continue
        above = lines[number - 2][1] if number >= 2 else ""
        overlined = above.rstrip() == under.rstrip()
        if above.strip() and not overlined:
            continue
        if title[0] in " \t" and not overlined:
            continue
        style = (mark[1], overlined)
        if style not in styles:
            styles.append(style)
        level = styles.index(style) + 1
        yield Heading(lines[number - 2][0] if overlined else start, level, shortened(title.strip()))
