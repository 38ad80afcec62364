"""Questions about options, with answers and evidence, split by option."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from jora_tasks.demo.documents import FACTS, Option, SectionDocument

# Test and dev come first: a smaller reference has fewer training questions, not fewer held-out ones.
QUESTIONS = {"test": 80, "dev": 30, "train": 160}

PHRASINGS = {
    "default": (
        "What is the default value of {option} in the [{section}] section?",
        "What does the option [{section}] {option} default to?",
        "Which value does {option} in section {section} have when nobody sets it?",
        "Tell me the default of {option} ({section} section).",
    ),
    "type": (
        "What is the type of {option} in the [{section}] section?",
        "Of which type is the value of [{section}] {option}?",
        "What type of value does {option} in section {section} take?",
        "Tell me the type of the option {option} ({section} section).",
    ),
    "version": (
        "In which version was {option} added to the [{section}] section?",
        "Since which version does the option [{section}] {option} exist?",
        "Which version introduced {option} in section {section}?",
        "Tell me the version that added {option} ({section} section).",
    ),
    "environment": (
        "Which environment variable sets {option} in the [{section}] section?",
        "What is the environment variable for [{section}] {option}?",
        "With which environment variable do I override {option} in section {section}?",
        "Tell me the name of the environment variable of {option} ({section} section).",
    ),
    "section": (
        "Which section of the Airflow configuration is {option} in?",
        "To which configuration section does the option {option} belong?",
        "In which section of airflow.cfg do I set {option}?",
        "Tell me the section that has the option {option}.",
    ),
}

_LONGEST_ANSWER = 48
_SECRET = re.compile(r"password|secret|token|_key$|credential", re.IGNORECASE)


def make_questions(documents: Iterable[SectionDocument]) -> list[dict[str, Any]]:
    """Rows of a questions file, the kinds of facts balanced within each split.

    An option is in one split only, drawn by a hash of its name. Held-out splits ask one question an
    option, so that their questions are independent; training asks further ones where options run out.
    """
    found = [(document, option) for document in documents for option in document.section.options]
    names = Counter(option.name for _, option in found)
    asked = [
        (document, option, kinds)
        for document, option in found
        if (kinds := _kinds(option, unique=names[option.name] == 1))
    ]
    asked.sort(key=lambda each: _digest(_group(each[1])))
    rows: list[dict[str, Any]] = []
    for split in ("test", "dev"):
        chosen, asked = asked[: QUESTIONS[split]], asked[QUESTIONS[split] :]
        rows += _balanced(chosen, split)
    return rows + _balanced(asked, "train")


def _balanced(
    options: Sequence[tuple[SectionDocument, Option, list[str]]], split: str
) -> list[dict[str, Any]]:
    """One question an option, of the kind asked least so far; then again, until there are enough."""
    counts = Counter(dict.fromkeys(FACTS, 0))
    left = [(document, option, list(kinds)) for document, option, kinds in options]
    rows: list[dict[str, Any]] = []
    while any(kinds for _, _, kinds in left):
        for document, option, kinds in left:
            if not kinds:
                continue
            if len(rows) == QUESTIONS[split]:
                return rows
            kind = min(kinds, key=lambda each: counts[each])
            kinds.remove(kind)
            counts[kind] += 1
            rows.append(_question(document, option, kind, split))
    return rows


def _kinds(option: Option, *, unique: bool) -> list[str]:
    """The facts of an option that have a short, unambiguous and harmless answer."""
    kinds = [kind for kind in FACTS if len(option.facts.get(kind, "")) in range(1, _LONGEST_ANSWER + 1)]
    if not unique:
        kinds.remove("section")
    default = option.facts.get("default", "")
    secret = option.sensitive or _SECRET.search(option.name)
    if "default" in kinds and (secret or not re.search(r"\w", default) or re.search(r"[{}\"']", default)):
        kinds.remove("default")
    return kinds


def _question(document: SectionDocument, option: Option, kind: str, split: str) -> dict[str, Any]:
    group = _group(option)
    phrasings = PHRASINGS[kind]
    phrasing = phrasings[int(_digest(f"{group} {kind}"), 16) % len(phrasings)]
    start, end = document.lines[option.name, kind]
    return {
        "id": f"{group}.{kind}",
        "question": phrasing.format(option=option.name, section=option.section),
        "answers": [option.facts[kind]],
        "evidence": [
            {"document_id": document.path, "start": start, "end": end, "text": document.text[start:end]}
        ],
        "split": split,
        "group": group,
    }


def _group(option: Option) -> str:
    return f"{option.section}.{option.name}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
