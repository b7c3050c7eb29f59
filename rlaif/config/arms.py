"""`arms`: policies that differ in nothing but whose labels they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from rlaif.config.base import Fraction, StepId, Strict
from rlaif.core.yamlio import suggest

HUMAN, AI, RANDOM = "human", "ai", "random"
LABELLERS = frozenset({HUMAN, AI, RANDOM})
"""Who can label without being named by a step's id."""

MAIN = "main"
"""What the one arm of an experiment without `arms` is called."""


class ArmSpec(Strict):
    """Who labels the pairs in one arm, and the share of these labels that is turned round."""

    labels: StepId = Field(
        description="human: the loaded labels; ai: every judge, combined; random: a coin; or the id"
        " of one judge."
    )
    flip: Fraction | None = Field(
        None, description="Reverse this fraction of the labels; 0 is a control, trained again."
    )


def _long_form(value: Any) -> Any:
    """`[human, ai, random, {flipped: 0.25}]`, or a mapping with such short forms, spelt out."""
    items = value.items() if isinstance(value, Mapping) else _list_names(value)
    arms: dict[str, Any] = {}
    for name, spec in items:
        if name in arms:
            raise ValueError(f"arm {name!r} is given twice")
        arms[name] = _spelt_out(name, spec)
    return arms


def _list_names(value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, list):
        raise ValueError("expected a list such as [human, ai], or a mapping of names")
    found: list[tuple[str, Any]] = []
    for item in value:
        if isinstance(item, str):
            found.append((item, None))
        elif isinstance(item, dict) and len(item) == 1:
            found += item.items()
        else:
            raise ValueError(f"{item!r}: expected a name, or one `name: ...`")
    return found


def _spelt_out(name: Any, spec: Any) -> Any:
    if spec is None and name in LABELLERS:
        return {"labels": name}
    if name == "flipped" and isinstance(spec, (int, float)) and not isinstance(spec, bool):
        return {"labels": HUMAN, "flip": spec}
    if isinstance(spec, (Mapping, ArmSpec)):
        return spec
    known = sorted(LABELLERS | {"flipped"})
    raise ValueError(
        f"{name!r} is no arm that needs no more words{suggest(str(name), known)}. The short forms "
        "are human, ai, random and `flipped: SHARE`; any other name takes "
        "{labels: human, ai, random or a judge's id, flip: SHARE}"
    )


_Short = dict[StepId, ArmSpec | Fraction | None]

Arms = Annotated[
    dict[StepId, ArmSpec],
    BeforeValidator(_long_form, json_schema_input_type=_Short | list[StepId | _Short]),
]
