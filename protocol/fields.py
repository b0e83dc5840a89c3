"""What every message and record of the wire is made of: the base model, and bounded field types."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**53)]
LocalWork = Literal["anytime", "window"]


class WireModel(BaseModel):
    """Frozen; unknown keys, numbers that are not finite, and `"1"` for 1 are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
