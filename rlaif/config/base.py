"""What every config class shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
)

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Temperature = Annotated[float, Field(ge=0.0, le=100.0)]
"""Of sampling; 0 is greedy."""
Count = Annotated[int, Field(ge=1, le=10_000)]
"""Of what is made all at once: answers to a prompt, rounds, open calls."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""Of random choices. NumPy takes none below 0, and torch none of 64 bits or more."""
StepId = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
PluginName = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]


class Strict(BaseModel):
    """A frozen model that refuses unknown keys, and prints nothing of what it refuses."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, hide_input_in_errors=True
    )


def told(model: Strict, *names: str) -> list[str]:
    """Those of the keys that say something, sorted: with another value than their default, since a
    resolved file has all keys."""
    fields = type(model).model_fields
    return sorted(n for n in names if getattr(model, n) != fields[n].get_default())
