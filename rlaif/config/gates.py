"""Limits on what on-policy training may do to the policy, looked at before each rollout is learned
from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field, FiniteFloat, model_validator

from rlaif.config.base import Strict

Level = Literal["warn", "stop"]
Bound = FiniteFloat | None


class Gate(Strict):
    """Where to warn and where to stop: a number, or [low, high] with null for no limit."""

    warn: FiniteFloat | tuple[Bound, Bound] | None = None
    stop: FiniteFloat | tuple[Bound, Bound] | None = None

    @model_validator(mode="after")
    def _require_limit(self) -> Gate:
        if self.warn is None and self.stop is None:
            raise ValueError("give `warn`, `stop` or both")
        for name in ("warn", "stop"):
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
    """A gate for each figure of a rollout. One number is the figure's highest value, and of
    `entropy` and `reward_spread` its least; reaching it counts."""

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

    def given(self) -> dict[str, Gate]:
        """The gates that are set, by figure."""
        named = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name: gate for name, gate in named if gate is not None}


LOWEST = frozenset({"entropy", "reward_spread"})
"""Figures of which one number is a lower limit."""


def bounds(figure: str, gate: Gate, level: Level) -> tuple[float | None, float | None]:
    """(low, high) of a figure's gate; None for no limit."""
    limit = gate.warn if level == "warn" else gate.stop
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
