"""Numbers that variables of the environment give."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from jora_tasks.errors import InputError


def number_of(variable: str, default: float, environment: Mapping[str, str] = os.environ) -> float:
    """The number of a variable, the default where it is unset or empty.

    Raises:
      InputError: naming the variable, if it is no finite number, or below 0.
    """
    text = environment.get(variable) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InputError(f"{variable} {text!r} is no number from 0 on; correct or unset it.")
    return value
