"""Write fitted weights into a constitution file, leaving its text and comments as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlaif.core.yamlio import load_yaml, read_text

Edit = tuple[int, int, str]
"""Characters from start to end are replaced by a text."""


def with_weights(path: Path, weights: Mapping[str, float]) -> str:
    """The text of the constitution file with these weights by principle id.

    An entry that has a `weight` gets the new one in its place, others get a line after their `id`.
    A principle that only an extended file has gets an entry of its own at the end. Raises
    ConfigError when the file cannot be read.
    """
    load_yaml(path)
    text = read_text(path)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    listed = _find_value(root, "principles")
    entries = {_find_value(entry, "id").value: entry for entry in listed.value} if listed else {}
    edits = [
        _set_weight(text, entry, weights[name])
        for name, entry in entries.items()
        if name in weights
    ]
    inherited = {name: weight for name, weight in weights.items() if name not in entries}
    if inherited:
        edits.append(_append_entries(text, listed, inherited))
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _find_value(mapping: Any, key: str) -> Any:
    """The node of a key in a mapping node, or None."""
    return next((value for name, value in mapping.value if name.value == key), None)


def _format_weight(weight: float) -> str:
    return f"{weight:.4g}"


def _set_weight(text: str, entry: yaml.MappingNode, weight: float) -> Edit:
    given = _find_value(entry, "weight")
    if given is not None:
        return given.start_mark.index, given.end_mark.index, _format_weight(weight)
    key, value = next((k, v) for k, v in entry.value if k.value == "id")
    end = value.end_mark.index
    if entry.flow_style:
        return end, end, f", weight: {_format_weight(weight)}"
    line_end = text.find("\n", end)
    end = len(text) if line_end < 0 else line_end
    return end, end, f"\n{' ' * key.start_mark.column}weight: {_format_weight(weight)}"


def _append_entries(
    text: str, listed: yaml.SequenceNode | None, weights: Mapping[str, float]
) -> Edit:
    rows = [f"{{id: {name}, weight: {_format_weight(weight)}}}" for name, weight in weights.items()]
    if listed is not None and listed.flow_style:
        end = listed.end_mark.index - 1
        return end, end, (", " if listed.value else "") + ", ".join(rows)
    if listed is None or not listed.value:
        end, indent = len(text.rstrip()), 2
        head = "\nprinciples:" if listed is None else ""
    else:
        last = listed.value[-1]
        end = len(text[: last.end_mark.index].rstrip())
        indent, head = listed.start_mark.column, ""
    return end, end, head + "".join(f"\n{' ' * indent}- {row}" for row in rows)
