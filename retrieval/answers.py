"""Where an answer's words stand in a text."""

from __future__ import annotations

import re
from functools import lru_cache


def find_answer(text: str, answer: str) -> tuple[int, int] | None:
    """The first place of the answer in the text as whole words, None if there is none.

    Case and the kind of white space do not count.

    >>> find_answer("Default: 30", "3"), find_answer("Default: 30", "30")
    (None, (9, 11))
    """
    pattern = _pattern(answer)
    found = pattern.search(text) if pattern else None
    return found.span() if found else None


@lru_cache(maxsize=4096)
def _pattern(answer: str) -> re.Pattern[str] | None:
    words = answer.split()
    if not words:
        return None
    # a sign at an end, as in "(b)", is no part of a longer word
    before = r"(?<!\w)" if re.match(r"\w", words[0]) else ""
    after = r"(?!\w)" if re.search(r"\w$", words[-1]) else ""
    return re.compile(before + r"\s+".join(map(re.escape, words)) + after, re.IGNORECASE)
