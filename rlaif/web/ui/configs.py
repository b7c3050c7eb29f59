"""The configs of two runs side by side, key by key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rlaif.pipeline.manifest import CONFIG

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The quick one, where libyaml is there."""


class Key(NamedTuple):
    """A key of two configs and its values; None where a config lacks it."""

    path: str
    first: str | None
    second: str | None

    @property
    def differs(self) -> bool:
        """Whether the values are not the same."""
        return self.first != self.second


def read_config(root: Path) -> str:
    """The resolved config of a run, as text."""
    return (root / CONFIG).read_text(encoding="utf-8", errors="replace")


def compare_configs(first: Path, second: Path) -> list[Key]:
    """Every key of the resolved configs of two runs: those of the first in its order, then what the
    second has alone."""
    mine, other = (
        dict(flatten_config(yaml.load(read_config(root), Loader=LOADER)))
        for root in (first, second)
    )
    return [Key(path, mine.get(path), other.get(path)) for path in {**mine, **other}]


def flatten_config(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The keys of a resolved config with their values as JSON-like text: `train.beta`. An item of a
    list of steps is called by its kind and id, any other by its place, from 1."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flatten_config(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for place, item in enumerate(value, 1):
            name = _item_name(item, place)
            own = next(iter(item.values())) if name[:1].isalpha() and len(item) == 1 else item
            yield from flatten_config(own, f"{path}[{name}]")
    else:
        yield path, _show_value(value)


def _item_name(item: Any, place: int) -> str:
    """`train:dpo` for {train: {id: dpo, ...}}, the id of what has one, or the place."""
    if isinstance(item, Mapping):
        kinds = [key for key, own in item.items() if isinstance(own, Mapping) and "id" in own]
        if len(item) == 1 and kinds:
            return f"{kinds[0]}:{item[kinds[0]]['id']}"
        if isinstance(item.get("id"), str):
            return f"{item['id']}"
    return str(place)


def _show_value(value: Any) -> str:
    """Text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
