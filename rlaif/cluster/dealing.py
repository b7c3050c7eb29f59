"""Calls dealt out to actors, and dealt out again when an actor or its node is lost.

Ray restarts an actor that has died, on another node if need be, but repeats none of its calls
(`max_task_retries` 0): which of them are missing, and in which order they are given out, is known
here.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from rlaif.core.errors import EngineError, RlaifError

log = logging.getLogger(__name__)

LOST = (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError, ObjectLostError)
"""Ray's errors that say that a call's actor, node or result is gone."""
AT_ONCE = 2
"""Calls that an actor holds: one that it computes, and one that it begins with next."""
MOST_LOSSES = 3
"""How often one call may be lost. Another loss is its own doing, such as memory that it takes."""


@dataclass(frozen=True)
class RemoteCall:
    """A method of an actor with its arguments."""

    method: str
    arguments: tuple[Any, ...] = ()


@dataclass
class _Table:
    """The actors, and where each call is. `starting` actors have not said that they are there."""

    ready: list[Any] = field(default_factory=list)
    starting: dict[Any, Any] = field(default_factory=dict)
    running: dict[Any, tuple[int, Any]] = field(default_factory=dict)
    held: Counter[Any] = field(default_factory=Counter)
    ended: str = ""

    def start(self, actor: Any) -> None:
        """Wait for an actor to be there, again where it was lost: Ray may be starting it anew."""
        if actor in self.ready:
            self.ready.remove(actor)
        if actor not in self.starting.values():
            self.starting[actor.about.options(max_task_retries=-1).remote()] = actor

    def find_free(self) -> Any:
        """The ready actor that holds the fewest calls, or None where all hold enough."""
        actor = min(self.ready, key=lambda a: self.held[a], default=None)
        return None if actor is None or self.held[actor] >= AT_ONCE else actor

    def submit(self, place: int, call: RemoteCall, actor: Any) -> None:
        """Give a call to an actor."""
        self.running[getattr(actor, call.method).remote(*call.arguments)] = place, actor
        self.held[actor] += 1

    def await_actor(self, ref: Any) -> None:
        """An actor is there, or has ended for good."""
        actor = self.starting.pop(ref)
        try:
            read(ref)
        except LOST as error:
            self.ended = str(error).strip()
            log.warning("an actor has ended: %s", self.ended)
        else:
            self.ready.append(actor)


def deal_out(
    actors: Sequence[Any], calls: Sequence[RemoteCall], most: int | None = None
) -> Iterator[Any]:
    """What each call returns, in their order, whichever actor computes it.

    At most `most` calls are dealt out and not yielded yet (None: no limit). A lost call is dealt
    out again, before all others. Raises what a call raised, and EngineError where no actor is left
    or a call was lost more than MOST_LOSSES times.
    """
    table = _Table()
    for actor in actors:
        table.start(actor)
    waiting = list(range(len(calls)))
    found: dict[int, Any] = {}
    losses: Counter[int] = Counter()
    head = 0
    try:
        while head < len(calls):
            while waiting and (most is None or waiting[0] < head + most):
                actor = table.find_free()
                if actor is None:
                    break
                place = heapq.heappop(waiting)
                table.submit(place, calls[place], actor)
            if head in found:
                yield found.pop(head)
                head += 1
                continue
            refs = [*table.running, *table.starting]
            if not refs:
                raise EngineError(f"no actor is left to compute with: {table.ended}")
            ref = ray.wait(refs, num_returns=1)[0][0]
            if ref in table.starting:
                table.await_actor(ref)
                continue
            place, actor = table.running.pop(ref)
            table.held[actor] -= 1
            try:
                found[place] = read(ref)
            except LOST as error:
                _count_loss(losses, place, error)
                heapq.heappush(waiting, place)
                table.start(actor)
    finally:
        # What an actor has not begun yet would only delay what it is asked next.
        for ref in table.running:
            ray.cancel(ref)


def _count_loss(losses: Counter[int], place: int, error: Exception) -> None:
    losses[place] += 1
    why = str(error).strip()
    log.warning("batch %d was lost and is dealt out again: %s", place, why)
    if losses[place] > MOST_LOSSES:
        raise EngineError(f"a batch was lost {losses[place]} times, the last time by: {why}")


def read(ref: Any) -> Any:
    """What a call returned. Raises what it raised if that is ours, EngineError for what a library
    raised, and Ray's own errors."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, RlaifError):
            raise cause from None
        raise EngineError(f"an actor failed: {type(cause).__name__}: {cause}") from error
