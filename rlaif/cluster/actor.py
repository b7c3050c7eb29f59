"""What runs in an actor: a loaded engine that answers one batch after the other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError
from rlaif.core.records import Message
from rlaif.engines.base import Divisible, Engine, Losing
from rlaif.engines.build import load_engine

Kind = Literal["generate", "score", "reward"]
CHUNK = 256
"""Requests of a batch where the engine has no layout of its own, such as vLLM's, which batches what
it is given as it goes."""


@dataclass(frozen=True)
class About:
    """What an engine says of itself."""

    name: str
    weights_hash: str
    capabilities: frozenset[str]
    loses: bool


class EngineActor:
    """Loads a model when it is first asked, so that what is wrong with it is raised to the
    caller."""

    def __init__(self, spec: dict[str, Any], folder: str | None, name: str):
        self._spec, self._folder, self._name = spec, folder, name
        self._loaded: Engine | None = None

    def _engine(self) -> Engine:
        if self._loaded is None:
            if self._folder is not None and not os.path.isdir(self._folder):
                raise EngineError(
                    f"model {self._name!r}: node {os.uname().nodename} has no folder "
                    f"{self._folder}. Keep run folders, models and caches on a disk that all nodes "
                    "have at the same path."
                )
            folder = None if self._folder is None else Path(self._folder)
            self._loaded = load_engine(ModelSpec.model_validate(self._spec), folder, self._name)
        return self._loaded

    def about(self) -> About:
        """What the engine says of itself; it is loaded from here on."""
        engine = self._engine()
        loses = isinstance(engine, Losing)
        return About(engine.name, engine.weights_hash, engine.capabilities, loses)

    def encoding(self) -> Any:
        """The engine's encoding, where it has one."""
        return getattr(self._engine(), "encoding", None)

    def lay_out(self, requests: Sequence[Any], done: AbstractSet[str]) -> list[Any]:
        """The batches of requests of one kind that are not wholly in `done`."""
        engine = self._engine()
        if isinstance(engine, Divisible):
            return engine.lay_out(requests, done)
        left = [request for request in requests if request.request_id not in done]
        return [left[i : i + CHUNK] for i in range(0, len(left), CHUNK)]

    def answer(self, kind: Kind, batch: Any) -> list[Any]:
        """The results of a batch of `lay_out`."""
        engine = self._engine()
        if isinstance(engine, Divisible):
            return engine.answer(batch)
        return list(chain.from_iterable(getattr(engine, kind)(batch)))

    def render(self, messages: list[Message], prefill: str) -> tuple[str, list[int]]:
        """See `Engine.render`."""
        return self._engine().render(messages, prefill)

    def lost(self, messages: Sequence[Message]) -> Counter[str]:
        """See `rlaif.engines.base.Losing`."""
        engine = self._engine()
        return engine.lost(messages) if isinstance(engine, Losing) else Counter()
