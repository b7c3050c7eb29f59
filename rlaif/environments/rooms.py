"""A small house in text: find the key, open the chest, take the coin."""

from __future__ import annotations

import random
import re
from typing import Annotated, Literal

from pydantic import Field

from rlaif.config.environments import EnvironmentSpec
from rlaif.core.records import content_hash
from rlaif.environments.base import Step

NAMES = ("hall", "kitchen", "cellar", "library", "attic", "garden", "workshop", "pantry")
KEY, CHEST, COIN = "take the brass key", "open the chest", "take the gold coin"
GOALS = (KEY, CHEST, COIN)
_BLANKS = re.compile(r"[\W_]+")


class RoomsSpec(EnvironmentSpec):
    """A house with a key, a chest and a coin; each of the three gives a third of the reward."""

    kind: Literal["rooms"]
    rooms: Annotated[int, Field(ge=2, le=len(NAMES))] = 3
    lists_commands: bool = Field(
        True, description="Say after each turn which commands are possible."
    )

    def build_environment(self) -> Rooms:
        """The house."""
        return Rooms(self.rooms, self.lists_commands)


class Rooms:
    """Rooms in a row. The seed says which they are, where the key and the chest are, and where one
    begins; a turn's first possible command is done."""

    def __init__(self, rooms: int, lists_commands: bool = True):
        self.count, self.lists_commands = rooms, lists_commands
        self.rooms: list[str] = []
        self.at = self.key = self.chest = 0
        self.achieved: list[str] = []

    def reset(self, seed: int) -> str:
        """A house by its seed."""
        rng = random.Random(content_hash("rooms", seed, self.count))
        self.rooms = rng.sample(NAMES, self.count)
        self.key, self.chest = rng.sample(range(self.count), 2)
        self.at = rng.randrange(self.count)
        self.achieved = []
        return (
            "You are in a house with a locked chest. Find the key, open the chest and take the "
            "coin. Answer with one command and nothing else, such as: take the brass key\n\n"
            + self._describe()
        )

    def step(self, action: str) -> Step:
        """The command that comes first in the text, of those that are possible; a text without any
        changes nothing."""
        said = f" {_BLANKS.sub(' ', action.lower()).strip()} "
        places = {c: said.find(f" {c} ") for c in self._commands()}
        possible = [command for command, place in places.items() if place >= 0]
        if not possible:
            return Step(f"That is not possible here.\n\n{self._describe()}")
        command = min(possible, key=lambda c: (places[c], -len(c)))
        if command not in GOALS:
            self.at = self.rooms.index(command.removeprefix("go to the "))
            return Step(self._describe(), achieved=command)
        self.achieved.append(command)
        reward = 1 / len(GOALS)
        if command == COIN:
            return Step("You have the gold coin.", reward, True, command)
        return Step(f"Done: {command}.\n\n{self._describe()}", reward, achieved=command)

    def _commands(self) -> list[str]:
        """What is possible now: first what is to be done here, then where one can go."""
        found = []
        if self.at == self.key and KEY not in self.achieved:
            found.append(KEY)
        if self.at == self.chest and KEY in self.achieved and CHEST not in self.achieved:
            found.append(CHEST)
        if self.at == self.chest and CHEST in self.achieved:
            found.append(COIN)
        beside = [place for place in (self.at - 1, self.at + 1) if 0 <= place < self.count]
        return [*found, *(f"go to the {self.rooms[place]}" for place in beside)]

    def _describe(self) -> str:
        seen = []
        if self.at == self.key and KEY not in self.achieved:
            seen.append("There is a brass key.")
        if self.at == self.chest:
            opened = CHEST in self.achieved
            seen.append("The chest is open; there is a gold coin in it." if opened else _CLOSED)
        carried = "You have the brass key." if KEY in self.achieved else "You carry nothing."
        text = " ".join([f"You are in the {self.rooms[self.at]}.", *seen, carried])
        return text + (f"\nYou can: {'; '.join(self._commands())}" if self.lists_commands else "")


_CLOSED = "There is a locked chest."
