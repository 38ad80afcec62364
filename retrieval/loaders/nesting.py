"""How deeply the elements of an HTML page nest, told from its tags alone."""

from __future__ import annotations

import re
from collections import Counter

_TAG = re.compile(r"<(?:(!--)|(/?)([a-z][^\s/>]*)([^>]*))")
# fmt: off
_NEVER_NEST = frozenset((  # void elements, and those that end where the next one begins
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track",
    "wbr", "colgroup", "dd", "dt", "li", "optgroup", "option", "p", "rp", "rt", "tbody", "td", "tfoot", "th",
    "thead", "tr",
))
_RAW = frozenset(("iframe", "noembed", "noframes", "script", "style", "textarea", "title", "xmp"))
# fmt: on
_FOREIGN = ("svg", "math")  # where a tag that ends in a slash is a whole element


def nests_deeper(page: str, limit: int) -> bool:
    """Whether more than ``limit`` elements are open somewhere; found in time that grows with the page alone.

    An end tag ends what is open within its element, as in a parser; one without an element is passed over.
    """
    page = page.lower()
    path: list[str] = []
    there: Counter[str] = Counter()
    position = 0
    while found := _TAG.search(page, position):
        comment, closing, name, rest = found.groups()
        position = found.end()
        if comment:
            position = _after(page, "-->", position)
        elif name in _NEVER_NEST:
            continue
        elif closing:
            while there[name]:
                there[last := path.pop()] -= 1
                if last == name:
                    break
        elif name in _RAW:
            position = _after(page, f"</{name}", position)
        elif not (rest.endswith("/") and (name in _FOREIGN or any(there[each] for each in _FOREIGN))):
            path.append(name)
            there[name] += 1
            if len(path) > limit:
                return True
    return False


def _after(page: str, mark: str, position: int) -> int:
    found = page.find(mark, position)
    return len(page) if found < 0 else found
