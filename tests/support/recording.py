"""Engines that keep what they are asked, progress that is written down, and a step with both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rlaif.config.models import ModelSpec
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Completion, Prompt, make_prompt
from rlaif.core.store import Store
from rlaif.engines.base import Model
from rlaif.engines.remote.meter import Account
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.steps.context import StepContext

FRUIT = make_prompt([{"role": "user", "content": "Name a red fruit."}], source="poems")
BIRD = make_prompt([{"role": "user", "content": "Name a bird."}], tags=["birds"])
WRITER = Model("key", "writer", ModelSpec(path="none", engine="fake", system_prompt="Own."))


@dataclass
class Recorder:
    """An engine that keeps what it is asked, and gives what is laid out for it, two at a time."""

    given: Mapping[str, Any]
    weights_hash: str
    concurrent: bool = False
    name: str = "recorder"
    capabilities: frozenset[str] = frozenset({"generate", "token_logprobs", "reward"})
    asked: list[Any] = field(default_factory=list)
    done: set[str] = field(default_factory=set)

    def _answer(self, requests: Iterable[Any], done: Iterable[str]) -> Iterator[list[Any]]:
        self.asked += requests
        self.done |= set(done)
        left = [self.given[r.request_id] for r in self.asked if r.request_id not in self.done]
        for start in range(0, len(left), 2):
            yield left[start : start + 2]

    def generate(self, requests: Any, done: Any = frozenset()) -> Any:
        return self._answer(requests, done)

    def score(self, requests: Any, done: Any = frozenset()) -> Any:
        return self._answer(requests, done)

    def reward(self, requests: Any, done: Any = frozenset()) -> Any:
        return self._answer(requests, done)


@dataclass
class Pool:
    """Engines by the label of the model."""

    engines: Mapping[str, Any]
    account: Account = field(default_factory=Account)

    def get(self, model: Model) -> Any:
        return self.engines[model.label]


@dataclass
class Watched(QuietProgress):
    """Progress that is written down."""

    said: list[tuple[Any, ...]] = field(default_factory=list)

    def start(self, name: str, total: int, already: int = 0, unit: str = "") -> None:
        self.said.append((name, total, already))

    def advance(self, count: int, tokens: int = 0, note: str = "") -> None:
        self.said.append((count, tokens))


def context(
    folder: Path, planned: Planned, engines: Mapping[str, Any], inputs: Mapping[str, Any] = {}
) -> StepContext:
    store = Store(folder)
    for name, rows in inputs.items():
        store.step(planned.inputs[name]).append("completions", rows)
    prompts = {p.prompt_id: p for p in (FRUIT, BIRD)}
    given = SimpleNamespace(starts={})
    made: Any = (planned, store.step(planned.hash), store, given, prompts, Pool(engines), Watched())
    return StepContext(*made)


def answer(name: str, prompt: Prompt, **keys: Any) -> Completion:
    turns: Any = [{"role": "assistant", "content": f"answer {name}"}]
    how = {"finish_reason": "stop"} | keys
    return Completion(name, prompt.prompt_id, 0, turns, "m", "w", {}, **how)
