"""What an environment is.

An episode begins with `reset` and goes on with one `step` for each turn of the policy, until `done`
or a limit. What an environment says is a pure function of its spec, the seed and the turns so far:
an episode that was interrupted is played again from its stored turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Step:
    """What a turn brings: the text that the policy reads next, the turn's reward, whether the
    episode is over, and in words what the turn achieved, None where nothing."""

    observation: str
    reward: float = 0.0
    done: bool = False
    achieved: str | None = None


class Environment(Protocol):
    """One episode at a time."""

    def reset(self, seed: int) -> str:
        """Begin the episode of a seed: the task and what is there to see."""
        ...

    def step(self, action: str) -> Step:
        """What the policy's turn, its text without any thinking, brings."""
        ...
