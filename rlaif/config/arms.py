"""`arms`: the policies of one experiment, and what differs between them: labels, or any keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    model_validator,
)

from rlaif.config.base import Fraction, StepId, Strict
from rlaif.core.yamlio import suggest

HUMAN, AI, RANDOM = "human", "ai", "random"
LABELLERS = frozenset({HUMAN, AI, RANDOM})
"""Who can label without being named by a step's id."""

MAIN = "main"
"""What the one arm of an experiment without `arms` is called."""


ArmName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.=,-]*$")]
"""Names of arms that a sweep makes have values in them."""


def _check_shares(labels: str | dict[str, float]) -> str | dict[str, float]:
    if isinstance(labels, str):
        return labels
    total = math.fsum(labels.values())
    if abs(total - 1.0) > 1e-9:
        raise ValueError(f"the shares must sum to 1 (their sum is {total:g})")
    # All by one labeller is that labeller.
    return next(iter(labels)) if len(labels) == 1 else labels


def _form_of(labels: Any) -> str:
    return "shares" if isinstance(labels, Mapping) else "one"


Labels = Annotated[
    Annotated[StepId, Tag("one")] | Annotated[dict[StepId, Fraction], Tag("shares")],
    Discriminator(_form_of),
    AfterValidator(_check_shares),
]
"""Who labels: one labeller, or several with the share of the pairs that each labels."""


def labellers_of(labels: str | Mapping[str, float]) -> list[str]:
    """Everybody who labels, in order."""
    return [labels] if isinstance(labels, str) else list(labels)


def describe_labels(labels: str | Mapping[str, float]) -> str:
    """Who labels, in words: `human`, or `human 50%, ai 50%`."""
    if isinstance(labels, str):
        return labels
    return ", ".join(f"{name} {100 * share:g}%" for name, share in labels.items())


class ArmSpec(Strict):
    """What differs in one arm: who labels the pairs, the share of these labels that is turned
    round, how many of them are used, and the values of any keys."""

    labels: Labels | None = Field(
        None,
        description="human: the loaded labels; ai: every judge, combined; random: a coin; or the id"
        " of one judge; or shares, {human: 0.5, ai: 0.5}. Default: as the `label` step says.",
    )
    flip: Fraction | None = Field(
        None, description="Reverse this fraction of the labels; 0 is a control, trained again."
    )
    labels_used: PositiveInt | None = Field(
        None,
        description="Use this many of the labelled pairs; more labels hold all of fewer. A list "
        "makes an arm of each, called NAME-COUNT.",
    )
    set: dict[str, Any] = Field(
        {}, description="Paths and their values, such as `steps.train.beta: 0.3`."
    )

    @model_validator(mode="after")
    def _labels_turned(self) -> ArmSpec:
        if self.flip is not None and self.labels is None:
            raise ValueError("`flip` turns labels round: say whose, with `labels`")
        return self

    @property
    def labelled(self) -> bool:
        """Whether the arm differs in its labels."""
        return self.labels is not None or self.labels_used is not None


def _long_form(value: Any) -> Any:
    """`[human, ai, random, {flipped: 0.25}]`, or a mapping with such short forms, spelt out."""
    items = value.items() if isinstance(value, Mapping) else _list_names(value)
    arms: dict[str, Any] = {}
    for given, given_spec in items:
        for name, spec in _each_count(given, _spelt_out(given, given_spec)):
            if name in arms:
                raise ValueError(f"arm {name!r} is given twice")
            arms[name] = spec
    return arms


def _each_count(name: Any, spec: Any) -> list[tuple[Any, Any]]:
    """An arm for each of `labels_used`, where it is a list."""
    counts = spec.get("labels_used") if isinstance(spec, Mapping) else None
    if not isinstance(counts, list):
        return [(name, spec)]
    if not counts:
        raise ValueError(f"arm {name!r}: `labels_used` is an empty list")
    return [(f"{name}-{count}", {**spec, "labels_used": count}) for count in counts]


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
        "are human, ai, random and `flipped: SHARE`; any other name takes a mapping such as "
        "{labels: JUDGE} or {set: {steps.train.beta: 0.3}}"
    )


_Short = dict[ArmName, ArmSpec | Fraction | None]

Arms = Annotated[
    dict[ArmName, ArmSpec],
    BeforeValidator(_long_form, json_schema_input_type=_Short | list[ArmName | _Short]),
]
