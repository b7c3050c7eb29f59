"""What every config class shares, and `--set KEY=VALUE`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, cast

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
)

from rlaif.core.errors import HIDDEN, ConfigError
from rlaif.core.yamlio import names_secret, without_secrets

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


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one dotted key in place. The value is read as YAML.

    A step is addressed by position, kind or id: `steps.train.beta=0.2`, `steps.self.by=initial`.
    """
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise ConfigError(
            f"--set {without_secrets(override)}: expected KEY=VALUE, such as steps.train.beta=0.2"
        )
    # What is shown of it, should it be refused.
    secret = any(names_secret(part) for part in key.split("."))
    override = f"{key}={HIDDEN}" if secret else without_secrets(override)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from None
    if isinstance(value, str):
        value = _parse_number(value)
    *parents, last = key.strip().split(".")
    node: Any = data
    for part in parents:
        node = _descend_into(node, part, override)
    if isinstance(node, dict):
        node[last] = value
    elif isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    else:
        raise ConfigError(f"--set {override}: nothing can be set at {key!r}")


def _parse_number(text: str) -> str | float:
    """YAML 1.1 reads 1e-5 as text; a user means the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _descend_into(node: Any, part: str, override: str) -> Any:
    if isinstance(node, dict):
        if node.get(part) is None:
            node[part] = {}
        return node[part]
    if isinstance(node, list):
        if part.isdigit() and int(part) < len(node):
            return node[int(part)]
        found = [item for item in node if _is_called(item, part)]
        if len(found) == 1:
            (kind,) = found[0]
            if found[0][kind] is None:
                found[0][kind] = {}
            return found[0][kind]
        count = "no step is" if not found else f"{len(found)} steps are"
        known = f"use its position (from 0 to {len(node) - 1}) or its id"
        raise ConfigError(f"--set {override}: {count} called {part!r}; {known}")
    raise ConfigError(f"--set {override}: {part!r} is not inside a mapping or a list")


def _is_called(item: Any, name: str) -> bool:
    if not isinstance(item, dict) or len(item) != 1:
        return False
    ((kind, body),) = item.items()
    return kind == name or (isinstance(body, dict) and body.get("id") == name)
