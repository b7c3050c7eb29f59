"""An engine whose batches are computed by actors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Any, Protocol

from rlaif.cluster.actor import About, Kind
from rlaif.cluster.dealing import RemoteCall, deal_out
from rlaif.core.records import Message
from rlaif.engines.base import (
    GenerateRequest,
    GenerateResult,
    RewardRequest,
    RewardResult,
    ScoreRequest,
    ScoreResult,
)


class Fleet(Protocol):
    """The actors of one model."""

    def actors(self) -> Sequence[Any]:
        """Handles of `rlaif.cluster.actor.EngineActor`; they are started if they are not there."""
        ...

    def stop(self) -> None:
        """End the actors."""
        ...


class ActorEngine:
    """See `rlaif.engines.base.Engine`. Batches are those that one engine in this process makes, and
    come in their order, so what is stored is the same. `in_flight` is for each actor."""

    concurrent = False

    def __init__(self, fleet: Fleet, in_flight: int):
        self._fleet = fleet
        self._in_flight = in_flight
        about: About = self._ask("about")
        self.name = about.name
        self.weights_hash = about.weights_hash
        self.capabilities = about.capabilities

    def _ask(self, method: str, *arguments: Any) -> Any:
        """What one actor, whichever is there first, returns."""
        return next(deal_out(self._fleet.actors(), [RemoteCall(method, arguments)]))

    def _answer(
        self, kind: Kind, requests: Iterable[Any], done: AbstractSet[str]
    ) -> Iterator[list[Any]]:
        asked = list(requests)
        known = frozenset(r.request_id for r in asked if r.request_id in done)
        if len(known) == len(asked):
            return
        batches = self._ask("lay_out", asked, known)
        actors = self._fleet.actors()
        calls = [RemoteCall("answer", (kind, batch)) for batch in batches]
        yield from deal_out(actors, calls, self._in_flight * len(actors))

    def generate(
        self, requests: Iterable[GenerateRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[GenerateResult]]:
        """See `Engine.generate`."""
        return self._answer("generate", requests, done)

    def score(
        self, requests: Iterable[ScoreRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[ScoreResult]]:
        """See `Engine.score`."""
        return self._answer("score", requests, done)

    def reward(
        self, requests: Iterable[RewardRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[RewardResult]]:
        """See `Engine.reward`."""
        return self._answer("reward", requests, done)

    @cached_property
    def encoding(self) -> Any:
        """The engine's encoding, which episodes are rendered with."""
        return self._ask("encoding")

    def render(self, messages: list[Message], prefill: str = "") -> tuple[str, list[int]]:
        """See `Engine.render`."""
        text, ids = self._ask("render", messages, prefill)
        return text, ids

    def lost(self, messages: Sequence[Message]) -> Counter[str]:
        """See `rlaif.engines.base.Losing`."""
        counts: Counter[str] = self._ask("lost", messages)
        return counts

    def close(self) -> None:
        """End the actors."""
        self._fleet.stop()
