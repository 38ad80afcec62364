"""Random draws that a seed and a question decide, whatever other questions there are."""

from __future__ import annotations

import hashlib
import random


def draws(seed: int, question_id: str, purpose: str = "") -> random.Random:
    """A generator for one purpose at one question."""
    name = f"{seed} {question_id} {purpose}" if purpose else f"{seed} {question_id}"
    return random.Random(hashlib.sha256(name.encode()).digest())  # noqa: S311 -- an order, not a secret
