"""What every config class shares."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, cast

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


class Late:
    """Marks a key that was added after the first version: `Annotated[int, LATE]`. A hash covers it
    only where its value is not its default, so that steps of older files keep theirs."""


LATE = Late()


def hashed_keys(
    spec: BaseModel, exclude: Collection[str] = (), include: Collection[str] | None = None
) -> dict[str, Any]:
    """What a spec's keys say, JSON-ready, for the hash of what they decide. Late keys that have
    their default are left out, also those of specs within it."""
    found = spec.model_dump(
        mode="json", exclude=set(exclude), include=None if include is None else set(include)
    )
    return cast(dict[str, Any], _without_late(spec, found))


def _without_late(value: Any, dumped: Any) -> Any:
    """`dumped`, which was made of `value`, without late keys at their defaults."""
    if isinstance(value, BaseModel) and isinstance(dumped, dict):
        fields = type(value).model_fields
        late = {
            name
            for name, field in fields.items()
            if LATE in field.metadata and getattr(value, name) == field.get_default()
        }
        inner = ((name, getattr(value, name, None)) for name in dumped if name not in late)
        return {name: _without_late(part, dumped[name]) for name, part in inner}
    if isinstance(value, Mapping) and isinstance(dumped, dict):
        # Keys of JSON are text, in the same order.
        pairs = zip(value.values(), dumped.items(), strict=True)
        return {name: _without_late(part, item) for part, (name, item) in pairs}
    if isinstance(value, (list, tuple)) and isinstance(dumped, list):
        return [_without_late(*both) for both in zip(value, dumped, strict=True)]
    return dumped


def told(model: Strict, *names: str) -> list[str]:
    """Those of the keys that say something, sorted: with another value than their default, since a
    resolved file has all keys."""
    fields = type(model).model_fields
    return sorted(n for n in names if getattr(model, n) != fields[n].get_default())
