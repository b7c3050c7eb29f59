"""Environments of tests: one with a planted skill, and hostile ones."""

from __future__ import annotations

from typing import Any

from rlaif.environments.base import Step


class Letters:
    """A turn is rewarded by the share of its characters that are in the first half of the letters;
    the observations differ by seed and turn."""

    def __init__(self, turns: int = 3):
        self.turns = turns
        self.turn = 0
        self.seed = 0

    def reset(self, seed: int) -> str:
        """See `Environment`."""
        self.seed, self.turn = seed, 0
        return f"Say {seed}."

    def step(self, action: str) -> Step:
        """See `Environment`."""
        self.turn += 1
        early = sum("a" <= c.lower() <= "m" for c in action)
        reward = early / max(1, len(action))
        achieved = f"turn {self.turn}" if early else None
        return Step(f"Go on {self.seed + self.turn}.", reward, self.turn == self.turns, achieved)


class Hostile:
    """Says what `answer` names, at its second turn."""

    def __init__(self, answer: str):
        self.answer = answer
        self.turn = 0

    def reset(self, seed: int) -> Any:
        """See `Environment`."""
        if self.answer == "empty start":
            return " "
        return "Begin."

    def step(self, action: str) -> Any:
        """See `Environment`."""
        self.turn += 1
        if self.turn == 1:
            return Step("More.")
        if self.answer == "raises":
            raise ZeroDivisionError("of its own")
        return {
            "nonsense": "a text",
            "no text": Step(None),  # type: ignore[arg-type]
            "empty": Step("  "),
            "surrogate": Step("half \ud83d of one"),
            "nan": Step("x", float("nan")),
            "truth": Step("x", True),
            "done": Step("x", 0.0, 1),  # type: ignore[arg-type]
            "achieved": Step("x", 0.0, False, 3),  # type: ignore[arg-type]
            "long": Step("word " * 5000, 1.0),
            "unicode": Step("日本 \U0001f600 \u0000 e\u0301", 1.0),
            "never done": Step("And on."),
        }[self.answer]
