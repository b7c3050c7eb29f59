"""Stages of an experiment: lists of steps, each of which runs for some rounds, as `when` names
them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveInt,
    create_model,
    model_validator,
)

from rlaif.config.arms import MAIN, ArmName
from rlaif.config.base import Count, SpecAt, StepId, Strict
from rlaif.core.yamlio import fault_at
from rlaif.pipeline.steps import STEPS

_RANGE = re.compile(r"(\d+)(-(\d*))?")


class Every(Strict):
    """Rounds K, 2K, 3K, ..."""

    every: PositiveInt


def _check_rounds(value: int | str | Every) -> int | str | Every:
    for first, last in _ranges(value) if isinstance(value, str) else ():
        if first < 1 or (last is not None and last < first):
            raise ValueError(f"{value!r}: rounds count from 1, and a range does not go back")
    return value


RoundsText = Annotated[
    str, Field(pattern=r"^\d+(-\d*)?(,\d+(-\d*)?)*$"), AfterValidator(_check_rounds)
]

Rounds = Annotated[
    PositiveInt | Annotated[str, Field(pattern=r"^\d+(-\d*)?(,\d+(-\d*)?)*$")] | Every,
    AfterValidator(_check_rounds),
    Field(description='Rounds: `2`, `"2-"` (from 2 on), `"1,3-4"`, or `{every: 3}`.'),
]


def in_rounds(rounds: int | str | Every | None, number: int) -> bool:
    """Whether round `number`, from 1 on, is one of `rounds`; all are where it is None."""
    if rounds is None:
        return True
    if isinstance(rounds, Every):
        return number % rounds.every == 0
    if isinstance(rounds, int):
        return number == rounds
    return any(
        first <= number and (last is None or number <= last) for first, last in _ranges(rounds)
    )


def _ranges(text: str) -> list[tuple[int, int | None]]:
    """First and last round of each range; the last is None where the range is open."""
    found: list[tuple[int, int | None]] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        assert match is not None, "the pattern of the key lets nothing else through"
        first, rest, last = int(match[1]), match[2], match[3]
        found.append((first, first if rest is None else int(last) if last else None))
    return found


_SPECS = {kind: spec for kind, spec in STEPS.items() if spec is not None}
_KEYS: Any = {kind: (Annotated[Any, SpecAt(spec)] | None, None) for kind, spec in _SPECS.items()}


class StepEntry(create_model("StepEntry", __base__=Strict, **_KEYS)):  # type: ignore[misc]
    """One item of `steps`: its kind with its keys, and when it runs."""

    when: Rounds | None = Field(
        None, description="The rounds of its stage in which it runs; default: all."
    )
    arms: list[ArmName] | None = Field(None, description="The arms that have it; default: all.")

    @model_validator(mode="before")
    @classmethod
    def _empty_means_defaults(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: {} if item is None and key in _SPECS else item for key, item in value.items()
            }
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> StepEntry:
        if len(self.model_fields_set & _SPECS.keys()) != 1:
            *kinds, last = _SPECS
            raise ValueError(f"each step is one key: {', '.join(kinds)} or {last}")
        return self

    @property
    def kind(self) -> str:
        """The key: a kind in `STEPS`."""
        return str(next(iter(self.model_fields_set & _SPECS.keys())))

    @property
    def step(self) -> Any:
        """The step's own keys, as the spec of its kind."""
        return getattr(self, self.kind)

    @property
    def makes_model(self) -> bool:
        """Whether it makes a model, which other steps know by its id."""
        return self.kind in ("train", "distill", "average")

    @property
    def makes_set(self) -> bool:
        """Whether its prompts are a set by its id."""
        return self.kind == "questions" or (self.kind == "load" and bool(self.step.makes_set))


class Until(Strict):
    """End a stage once a judge's mean on the validation prompts has not risen for some rounds; the
    stage's policy is then that of its best round."""

    by: StepId = Field(description="The judge, by its id in `judges`.")
    stops_rising: PositiveInt = Field(
        1, description="Stop after this many rounds without a new best."
    )

    @property
    def makes_masters(self) -> bool:
        """The chosen model is kept with the fp32 masters of its training."""
        return True


def _texts_of_rounds(value: Any) -> Any:
    """Rounds as keys of YAML: `2` is read as a number."""
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else value


class Stage(Strict):
    """Steps that run for some rounds; each round starts from the latest policy."""

    id: StepId
    rounds: Count = 1
    prompts: StepId = Field(
        MAIN, description="The set of prompts that `sample` and on-policy `train` draw from."
    )
    arms: list[ArmName] | None = Field(None, description="The arms that have it; default: all.")
    at: Annotated[dict[RoundsText, dict[str, Any]], BeforeValidator(_texts_of_rounds)] = Field(
        {},
        description='Values of its steps in some rounds, such as `"2-3": {steps.pair.tier: 0.3}`.',
    )
    until: Until | None = Field(
        None, description="When to stop before the last round; `rounds` are then the most."
    )
    steps: Annotated[list[StepEntry], Field(min_length=1)]

    @model_validator(mode="after")
    def _steps_run(self) -> Stage:
        self.check_rounds()
        return self

    def check_rounds(self) -> None:
        """Raises PydanticCustomError where a step or `at` is of no round of the stage."""
        for index, entry in enumerate(self.steps):
            if not any(in_rounds(entry.when, number) for number in range(1, self.rounds + 1)):
                raise fault_at(
                    ("steps", index, "when"),
                    f"{entry.kind} {entry.step.id!r} never runs: `when` names none of the rounds "
                    f"(1 to {self.rounds})",
                )
        for rounds in self.at:
            if not any(in_rounds(rounds, number) for number in range(1, self.rounds + 1)):
                raise fault_at(
                    ("at", rounds), f"{rounds!r} names none of the rounds (1 to {self.rounds})"
                )


def has_arm(arms: list[str] | None, arm: str) -> bool:
    """Whether a stage or a step with this key `arms` is one of the arm's."""
    return arms is None or arm in arms
