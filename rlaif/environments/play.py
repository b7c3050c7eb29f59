"""One episode: the only caller of an environment. What it says is checked, since a plug-in may say
anything; errors name the environment, the episode and the turn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

from rlaif.config.base import hashed_keys
from rlaif.config.environments import EnvironmentSpec, read_environment
from rlaif.core.chat import is_unicode
from rlaif.core.errors import RlaifError
from rlaif.core.records import Message, Prompt, make_prompt
from rlaif.environments.base import Environment, Step

T = TypeVar("T")


def make_starts(spec: EnvironmentSpec, episodes: int) -> list[Prompt]:
    """The prompts that episodes with the seeds 0, 1, ... begin with. Raises RlaifError where the
    environment fails."""
    keys = hashed_keys(spec)
    source = str(keys["kind"]).rpartition(":")[2]
    found = []
    for seed in range(episodes):
        environment = {**keys, "seed": seed}
        start: Message = {"role": "user", "content": Play(environment).reset()}
        found.append(make_prompt([start], source, environment=environment))
    return found


class Play:
    """An episode that is being played. `environment` are the spec's keys and the `seed`."""

    def __init__(self, environment: dict[str, Any]):
        self.seed = int(environment["seed"])
        self.spec = read_environment({k: v for k, v in environment.items() if k != "seed"})
        self.name = str(environment["kind"])
        self.turn = 0
        self.over = False
        self.environment: Environment = self.spec.build_environment()

    def reset(self) -> str:
        """The text that the episode begins with. Raises RlaifError."""
        text = self._ask("reset", lambda: self.environment.reset(self.seed))
        self._check_text("the observation", text)
        if not text.strip():
            raise self.fail("the observation is empty, and the policy is to answer it")
        return text

    def begin(self, prompt: Prompt) -> None:
        """Begin the episode that a prompt is the start of. Raises RlaifError where it begins in
        another way now."""
        if self.reset() != prompt.messages[-1]["content"]:
            raise self.fail(
                "it begins with another text than before, so it depends on more than its seed"
            )

    def step(self, action: str) -> Step:
        """What the next turn brings. Raises RlaifError."""
        self.turn += 1
        step = self._ask("step", lambda: self.environment.step(action))
        if not isinstance(step, Step):
            raise self.fail(f"`step` must return a Step, not {type(step).__name__}")
        self._check_text("the observation", step.observation)
        if not isinstance(step.done, bool):
            raise self.fail(f"`done` must be true or false, not {step.done!r}")
        if not step.done and not step.observation.strip():
            raise self.fail("the observation is empty, and the policy is to answer it")
        number = isinstance(step.reward, int | float) and not isinstance(step.reward, bool)
        if not number or not math.isfinite(step.reward):
            raise self.fail(f"the reward must be a finite number, not {step.reward!r}")
        if step.achieved is not None:
            self._check_text("what was achieved", step.achieved)
        self.over = step.done
        return step

    def _ask(self, what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except RlaifError:
            raise
        # An environment may raise anything.
        except Exception as error:
            raise self.fail(f"`{what}` raised {type(error).__name__}: {error}") from error

    def _check_text(self, what: str, text: object) -> None:
        if not isinstance(text, str):
            raise self.fail(f"{what} must be a text, not {type(text).__name__}")
        if not is_unicode([text]):
            raise self.fail(f"{what} is not valid Unicode")

    def fail(self, why: str) -> RlaifError:
        """An error at this turn of the episode."""
        at = f"turn {self.turn}" if self.turn else "its start"
        return RlaifError(f"environment {self.name}, episode {self.seed}, {at}: {why}")
