"""Environments of gymnasium with a finite number of actions, described as text.

Those that draw themselves as text (`render_mode: ansi`) are shown so, others by their observation.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import Field

from rlaif.config.environments import EnvironmentSpec
from rlaif.core.errors import ConfigError
from rlaif.environments.base import Step

ACTIONS = {
    "FrozenLake": ["left", "down", "right", "up"],
    "FrozenLake8x8": ["left", "down", "right", "up"],
    "CliffWalking": ["up", "right", "down", "left"],
    "CliffWalkingSlippery": ["up", "right", "down", "left"],
    "Taxi": ["south", "north", "east", "west", "pick up", "drop off"],
    "Blackjack": ["stick", "hit"],
}
"""Names of the actions 0, 1, ... of gymnasium's toy texts, without their version."""
TASKS = {
    "FrozenLake": "Walk from S to G over the frozen lake (F) without falling into a hole (H).",
    "FrozenLake8x8": "Walk from S to G over the frozen lake (F) without falling into a hole (H).",
    "CliffWalking": "Walk from x to T without stepping on the cliff (C).",
    "CliffWalkingSlippery": "Walk from x to T without stepping on the cliff (C).",
    "Taxi": "Drive the taxi [ ] to the passenger ( ), pick them up and drop them off where they "
    "want to go < >. Do not drive through walls (|).",
    "Blackjack": "Come as close to 21 as you can, and not beyond it. The observation is the sum of "
    "your cards, the dealer's card, and 1 if you have a usable ace.",
}
_COLOURED = re.compile(r"\x1b\[([\d;]+)m(.*?)\x1b\[0m", re.DOTALL)
_BRACKETS = {"4": "[]", "34": "()", "3": "<>"}
"""What stands for a colour, by how its code begins: of the ground, blue text, other text."""
INSTALL = "pip install 'gymnasium>=1.2'"


class GymnasiumSpec(EnvironmentSpec):
    """An environment of gymnasium whose actions are numbered from 0; needs the package."""

    kind: Literal["gymnasium"]
    name: str = Field(min_length=1, description="Its id, such as FrozenLake-v1.")
    options: dict[str, Any] = Field({}, description="Arguments of `gymnasium.make`.")
    actions: list[str] | None = Field(
        None, description="Names of the actions 0, 1, ...; of toy texts they are known."
    )
    task: str | None = Field(None, description="What to do; of toy texts it is known.")

    def build_environment(self) -> Gymnasium:
        """The environment. Raises ConfigError where there is none of that name, or it has other
        actions than numbered ones."""
        if find_spec("gymnasium") is None:
            raise ConfigError(
                f"environment gymnasium: its package is not installed. Run: {INSTALL}"
            )
        import gymnasium

        place = f"environment gymnasium {self.name}"
        try:
            shown = gymnasium.spec(self.name)
            modes = _render_modes(shown)
            extra = {"render_mode": "ansi"} if "ansi" in modes else {}
            made = gymnasium.make(self.name, **{**extra, **self.options})
        # What gymnasium and its environments raise has no common class.
        except Exception as error:
            raise ConfigError(f"{place}: {type(error).__name__}: {error}") from error
        if not isinstance(made.action_space, gymnasium.spaces.Discrete):
            raise ConfigError(f"{place}: its actions are {made.action_space}, and not numbered")
        count, start = int(made.action_space.n), int(made.action_space.start)
        kind = self.name.rpartition("/")[2].partition("-v")[0]
        names = self.actions or ACTIONS.get(kind) or [str(start + i) for i in range(count)]
        if len(names) != count or len({name.lower() for name in names}) < count:
            raise ConfigError(f"{place}: it has {count} actions; give as many different `actions`")
        task = self.task or TASKS.get(kind, "Collect as much reward as you can.")
        return Gymnasium(made, [name.lower() for name in names], start, task, bool(extra))


def _render_modes(spec: Any) -> list[str]:
    from gymnasium.envs.registration import load_env_creator

    entry = spec.entry_point
    creator = load_env_creator(entry) if isinstance(entry, str) else entry
    return list(getattr(creator, "metadata", {}).get("render_modes", ()))


class Gymnasium:
    """A gymnasium environment whose turns are the names of its actions."""

    def __init__(self, made: Any, actions: list[str], start: int, task: str, draws: bool):
        self.made, self.actions, self.start = made, actions, start
        self.task, self.draws = task, draws
        self.seen: Any = None

    def reset(self, seed: int) -> str:
        """The task, the actions and the first observation."""
        self.seen, _ = self.made.reset(seed=seed)
        return (
            f"{self.task} Answer with one action and nothing else: {', '.join(self.actions)}.\n\n"
            f"{self._describe()}"
        )

    def step(self, action: str) -> Step:
        """The action whose name comes first in the text; a text without any changes nothing."""
        found = [
            (match.start(), -len(name), number)
            for number, name in enumerate(self.actions)
            if (match := re.search(rf"(?<!\w){re.escape(name)}(?!\w)", action.lower()))
        ]
        if not found:
            return Step(f"That is no action. Actions: {', '.join(self.actions)}.")
        number = min(found)[2]
        self.seen, reward, ended, cut, _ = self.made.step(self.start + number)
        said = f"You did: {self.actions[number]}.\n\n{self._describe()}"
        return Step(said, float(reward), bool(ended or cut), self.actions[number])

    def _describe(self) -> str:
        if not self.draws:
            return f"Observation: {self.seen}"
        return _COLOURED.sub(_bracket, str(self.made.render())).strip("\n")


def _bracket(found: re.Match[str]) -> str:
    """A coloured text in brackets."""
    code, text = found.groups()
    around = next((b for start, b in _BRACKETS.items() if code.startswith(start)), "  ")
    return f"{around[0]}{text}{around[1]}"
