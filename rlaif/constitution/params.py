"""What the parameters of every rule have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Params(BaseModel):
    """A rule's parameters: unknown ones and values of another type are refused."""

    # Strict, so that `min: "3"` or `n: true` is a mistake and not a number.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NoParams(Params):
    """A rule without parameters."""
