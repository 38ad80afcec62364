"""Characters that no one sees or that a terminal obeys: found, and shown."""

from __future__ import annotations

import re
import unicodedata

# C0 and C1 controls but tab and newline, and halves of a surrogate pair.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# With what turns the direction of the rest of a line.
_OBEYED = re.compile(rf"{_CONTROL.pattern[:-1]}\n\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def control_in(text: str) -> str | None:
    """The first control character of a text in words, None if it has none; tabs and newlines are none.

    >>> control_in("a\\x1b[31m"), control_in("a\\tb\\n")
    ('U+001B', None)
    """
    found = _CONTROL.search(text)
    return f"U+{ord(found[0]):04X}" if found else None


_UNSEEN = {"Zs", "Zl", "Zp", "Cc", "Cf", "Mn", "Me"}


def is_blank(text: str) -> bool:
    """Whether there is nothing to see: spaces, marks without a letter and characters of no width alone.

    >>> is_blank(" \\u200b\\ufeff"), is_blank("1")
    (True, False)
    """
    return all(unicodedata.category(each) in _UNSEEN for each in text)


def visible(text: str) -> str:
    """A line with escapes for what a terminal would obey, as Python writes them.

    >>> visible("caf\\u00e9 \\x1b]0;title\\x07")
    'café \\\\x1b]0;title\\\\x07'
    """
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def visible_lines(text: str) -> str:
    """As `visible`, for a text of several lines."""
    return "\n".join(map(visible, text.split("\n")))
