"""The main text of an HTML page, its headings written as Markdown headings."""

from __future__ import annotations

import re
from typing import Any, BinaryIO

from jora_tasks.errors import InputError
from jora_tasks.spec import DocumentsConfig
from retrieval.loaders.encoding import decode
from retrieval.loaders.nesting import nests_deeper

_DEEPEST = 4000  # for each tag the parser looks through all that are open
_LEFT_OUT = "script, style, noscript, template, svg, nav, header, footer, aside, form, iframe"
_MAIN = ("main", "[role=main]", "article", "body")
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
# fmt: off
_BLOCKS = frozenset((
    "address", "article", "blockquote", "dd", "details", "div", "dl", "dt", "fieldset", "figcaption",
    "figure", "hr", "li", "main", "ol", "p", "pre", "section", "summary", "table", "tr", "ul",
))
# fmt: on
_CELLS = frozenset(("td", "th"))


def read_html(stream: BinaryIO, source: str, config: DocumentsConfig) -> tuple[str, str]:
    """Title and main text of a page, in the encoding it is in or declares.

    Raises:
      InputError: for a page that no parser reads in reasonable time.
    """
    page = decode(stream, source, config)
    if nests_deeper(page, _DEEPEST):
        raise InputError(
            f"{source} has over {_DEEPEST:,} elements within each other, as no page needs; close its tags, "
            "or save it as text."
        )
    return html_text(page)


def html_text(page: str) -> tuple[str, str]:
    """The page's title and the text of its main part.

    The main part is the first of ``main``, ``[role=main]``, ``article`` and ``body``, without
    navigation, scripts, forms and the like. ``<h2>Limits</h2>`` becomes the line ``## Limits``.
    """
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(page)
    head = tree.css_first("title")
    title = " ".join(head.text().split()) if head else ""
    main: Any = next((found for selector in _MAIN if (found := tree.css_first(selector))), None)
    if main is None:
        return title, ""
    for node in main.css(_LEFT_OUT):
        # a page's own title block is content, a site's banner is not
        if node.tag == "header" and node.css_first("h1, h2"):
            continue
        node.decompose()
    pieces: list[str] = []
    _write(main, pieces)
    lines = [line.rstrip() for line in "".join(pieces).split("\n")]
    return title, re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _write(main: Any, pieces: list[str]) -> None:
    """Append the text below a node, without recursion: pages nest as deeply as they like."""
    waiting = _children(main, False)  # a stack; text in it is what follows a node's children
    while waiting:
        node, preformatted = waiting.pop()
        if isinstance(node, str):
            pieces.append(node)
            continue
        tag = node.tag
        if tag == "-text":
            text = node.text(deep=True)
            if not preformatted:
                text = re.sub(r"\s+", " ", text)
                if not pieces or pieces[-1].endswith(("\n", " ")):
                    text = text.lstrip(" ")
            if text:
                pieces.append(text)
        elif tag == "br":
            pieces.append("\n")
        elif tag in _HEADINGS:
            content = " ".join(node.text(deep=True).split())
            if content:
                pieces.append(f"\n\n{'#' * _HEADINGS[tag]} {content}\n\n")
        elif tag in _BLOCKS:
            # list items and rows stand on their own lines, other blocks apart
            gap = "\n" if tag in ("li", "tr", "dt", "dd") else "\n\n"
            pieces.append(gap)
            if tag == "li":
                pieces.append("- ")
            waiting.append((gap, False))
            waiting += _children(node, preformatted or tag == "pre")
        else:
            if tag in _CELLS:
                waiting.append((" ", False))
            waiting += _children(node, preformatted)


def _children(node: Any, preformatted: bool) -> list[tuple[Any, bool]]:
    """A node's children, the first one last."""
    return [(child, preformatted) for child in node.iter(include_text=True)][::-1]
