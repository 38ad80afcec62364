"""Numbers of the environment."""

from __future__ import annotations

import pytest

from jora_tasks.errors import InputError
from jora_tasks.variables import number_of


@pytest.mark.parametrize(("text", "number"), [("", 3.5), ("0", 0), ("1e3", 1000), (" 2 ", 2)])
def test_a_number_or_the_default(text: str, number: float) -> None:
    assert number_of("JORA_X", 3.5, {"JORA_X": text}) == number


@pytest.mark.parametrize("text", ["15m", "-1", "nan", "inf"])
def test_no_number_is_refused_by_its_variable(text: str) -> None:
    with pytest.raises(InputError, match=f"JORA_X '{text}' is no number"):
        number_of("JORA_X", 1, {"JORA_X": text})
