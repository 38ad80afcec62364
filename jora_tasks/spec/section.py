"""What every group of settings shares: frozen, strict, described, bounded."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

LOCAL_PATH: dict[str, Any] = {"min_length": 1, "max_length": 4000, "pattern": r"^[^\x00]+$"}
LARGEST_SEED = 2**32 - 1


class Section(BaseModel):
    """A frozen group of settings that refuses fields it does not know."""

    # Defaults are validated too: 32 and 32.0 would otherwise be two settings to an artifact's key.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )
