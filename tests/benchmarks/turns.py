"""Measurements that each have a process of their own, so that its peak memory and its caches are its own.

And how benchmarks are told the sizes of a batch.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


def rows_and_tokens(text: str) -> tuple[int, int]:
    """Rows, and tokens of each, from ``2x4096``: a type for argparse."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not ROWSxTOKENS, as in 2x4096")
    rows, tokens = map(int, text.split("x"))
    return rows, tokens


def in_child(module: str, arguments: Sequence[object]) -> dict[str, Any]:
    """The last line that ``python -m module --child ...`` prints, a JSON object."""
    command = [sys.executable, "-m", module, "--child", *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def in_turns(
    module: str, sides: Sequence[str], arguments: Sequence[object], rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Each side's measurements, one a round; every second round begins with the last side."""
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for turn in range(rounds):
        for side in sides if turn % 2 == 0 else reversed(sides):
            results[side].append(in_child(module, [side, *arguments]))
    return results
