"""Guess a number: after each guess the environment says whether the number is higher or lower."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from rlaif.config.environments import EnvironmentSpec
from rlaif.core.records import content_hash
from rlaif.environments.base import Step

_NUMBER = re.compile(r"-?\d+")


class NumberSpec(EnvironmentSpec):
    """A number is to be guessed. The reward is 1 for the guess that hits it."""

    kind: Literal["number"]
    low: int = 1
    high: int = 20
    closeness: bool = Field(
        False,
        description="Reward the last guess of an episode that misses too, by how close it is: 1 - "
        "distance / (high - low), halved. Otherwise misses give 0.",
    )

    @model_validator(mode="after")
    def _check_range(self) -> NumberSpec:
        if self.low >= self.high:
            raise ValueError(f"`low` ({self.low}) must be below `high` ({self.high})")
        return self

    def build_environment(self) -> NumberGame:
        """The game."""
        return NumberGame(self.low, self.high, self.max_turns if self.closeness else None)


class NumberGame:
    """`last` is the turn at which a miss is rewarded by how close it is; None: never."""

    def __init__(self, low: int, high: int, last: int | None = None):
        self.low, self.high, self.last = low, high, last
        self.number, self.turn = low, 0

    def reset(self, seed: int) -> str:
        """The number is drawn from the seed."""
        drawn = int(content_hash("number", seed, length=15), 16)
        self.number = self.low + drawn % (self.high - self.low + 1)
        self.turn = 0
        return (
            f"I am thinking of a whole number from {self.low} to {self.high}. Guess it. Answer "
            "with one number and nothing else; I will say whether mine is higher or lower."
        )

    def step(self, action: str) -> Step:
        """The first number in the text is the guess."""
        self.turn += 1
        found = _NUMBER.search(action)
        if found is None:
            return Step("I see no number. Answer with one number.")
        guess = int(found.group()[:12])
        if guess == self.number:
            return Step(f"Yes, it is {guess}.", 1.0, True, "guess the number")
        reward = 0.0
        if self.turn == self.last:
            reward = max(0.0, 1 - abs(guess - self.number) / (self.high - self.low)) / 2
        return Step(f"It is {'higher' if guess < self.number else 'lower'} than {guess}.", reward)
