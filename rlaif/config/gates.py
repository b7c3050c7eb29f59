"""Limits on what on-policy training may do to the policy, looked at before each rollout is learned
from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, FiniteFloat, PositiveInt, model_validator

from rlaif.config.base import Strict, told

Level = Literal["warn", "rollback", "stop"]
LEVELS: tuple[Level, ...] = ("warn", "rollback", "stop")
Bound = FiniteFloat | None


class Gate(Strict):
    """Where to warn, where to go back to an earlier policy and where to stop: a number, or
    [low, high] with null for no limit."""

    warn: FiniteFloat | tuple[Bound, Bound] | None = None
    rollback: FiniteFloat | tuple[Bound, Bound] | None = Field(
        None, description="Go back to the last good checkpoint, and sample anew from there."
    )
    stop: FiniteFloat | tuple[Bound, Bound] | None = None

    @model_validator(mode="after")
    def _require_limit(self) -> Gate:
        if all(getattr(self, level) is None for level in LEVELS):
            raise ValueError("give one or more of `warn`, `rollback` and `stop`")
        for name in LEVELS:
            limit = getattr(self, name)
            if not isinstance(limit, tuple):
                continue
            low, high = limit
            if low is None and high is None:
                raise ValueError(f"{name}: [low, high] needs one of the two")
            if low is not None and high is not None and not low < high:
                raise ValueError(f"{name}: [low, high] needs low < high")
        return self


class Gates(Strict):
    """A gate for each figure of a rollout. A single number is the figure's upper limit, or for
    `entropy` and `reward_spread` its lower limit; a value equal to the limit counts as reached."""

    flat_groups: Gate | None = Field(
        None, description="Fraction of prompts whose answers all have the same reward."
    )
    kl: Gate | None = Field(
        None, description="KL to the reference, nats per answer; also measured with beta 0."
    )
    entropy: Gate | None = Field(None, description="Mean entropy of the next token, nats.")
    length: Gate | None = Field(None, description="Mean tokens of an answer.")
    reward_spread: Gate | None = Field(
        None, description="Standard deviation of all answers' rewards."
    )
    max_rollbacks: PositiveInt = Field(
        3, description="Rollbacks of one training; where one more is needed, it stops."
    )

    @model_validator(mode="after")
    def _require_rollback(self) -> Gates:
        if told(self, "max_rollbacks") and not self.rollbacks:
            raise ValueError("max_rollbacks has no effect: no gate has a `rollback` limit")
        return self

    def given(self) -> dict[str, Gate]:
        """The gates that are set, by figure."""
        named = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name: gate for name, gate in named if isinstance(gate, Gate)}

    @property
    def rollbacks(self) -> dict[str, Any]:
        """The `rollback` limits by figure, JSON-ready. They change what is trained, unlike those of
        the other levels."""
        limits = ((name, gate.rollback) for name, gate in self.given().items())
        return {name: limit for name, limit in limits if limit is not None}


LOWEST = frozenset({"entropy", "reward_spread"})
"""Figures of which one number is a lower limit."""


def bounds(figure: str, gate: Gate, level: Level) -> tuple[float | None, float | None]:
    """(low, high) of a figure's gate; None for no limit."""
    limit: float | tuple[Bound, Bound] | None = getattr(gate, level)
    if isinstance(limit, tuple):
        return limit
    return (limit, None) if figure in LOWEST else (None, limit)


def reached(
    gates: Gates, figures: Mapping[str, float], level: Level
) -> Iterator[tuple[str, str, float]]:
    """(figure, "low" or "high", limit) of every limit that the figures reach. One that was not
    measured reaches none."""
    for figure, gate in gates.given().items():
        value = figures.get(figure)
        low, high = bounds(figure, gate, level)
        if value is not None and low is not None and value <= low:
            yield figure, "low", low
        if value is not None and high is not None and value >= high:
            yield figure, "high", high
