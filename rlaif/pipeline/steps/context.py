"""What a running step may use: its plan, its folder, its inputs, engines and progress.

Also what every kind of step says alike: what a model was not shown of conversations, and that a
step whose calls all failed is not done.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol

from rlaif.core.chat import has_more
from rlaif.core.errors import ConfigError, EngineError
from rlaif.core.records import Completion, Judgement, Message, Preference, Prompt, R
from rlaif.core.rowindex import Part
from rlaif.core.store import FILES, StepFolder, Store
from rlaif.engines.base import Engine, Losing, Model, ModelWeights
from rlaif.engines.build import Loader
from rlaif.engines.remote.meter import Account
from rlaif.judges.base import Judge
from rlaif.pipeline.plan.base import SLOT, PlanInputs, Planned

if TYPE_CHECKING:
    from rlaif.train.run import Trainer

LOOK_SECONDS = 0.05
"""How often a step looks for samples that another one is writing."""


class Engines(Protocol):
    """Loads models when they are asked for and frees them on demand. `account` has what remote
    ones were asked, and `load` loads one that the caller closes."""

    account: Account
    load: Loader

    def get(self, model: Model) -> Engine:
        """The loaded engine of `model`; the same weights are never loaded twice."""
        ...

    def folder(self, model: Model) -> str:
        """The folder of a model's weights."""
        ...

    def with_weights(self, model: Model, weights: ModelWeights, digest: str) -> Engine:
        """An engine of `model`'s kind with `weights` in place of the model's own."""
        ...

    def make_room(self, processes: int = 1) -> None:
        """Free the memory of loaded models, which training needs."""
        ...


class Progress(Protocol):
    """Where a step says how far it is."""

    def start(self, name: str, total: int, already: int = 0, unit: str = "") -> None:
        """A new bar: `total` items, of which `already` were done earlier."""
        ...

    def extend(self, count: int) -> None:
        """`count` more items have turned up that are to be done."""
        ...

    def advance(self, count: int, tokens: int = 0, note: str = "") -> None:
        """`count` more items are stored; `tokens` made with them. Raises what stopped a step that
        runs at the same time, which then ends this one too."""
        ...

    def finish(self) -> None:
        """The bar is done."""
        ...


@dataclass(frozen=True)
class CheckedProgress:
    """Progress of a step that other steps run beside; `check` raises what stopped them."""

    progress: Progress
    check: Callable[[], None]

    def start(self, name: str, total: int, already: int = 0, unit: str = "") -> None:
        """See `Progress`."""
        self.progress.start(name, total, already, unit)

    def extend(self, count: int) -> None:
        """See `Progress`."""
        self.progress.extend(count)

    def advance(self, count: int, tokens: int = 0, note: str = "") -> None:
        """See `Progress`."""
        self.check()
        self.progress.advance(count, tokens, note)

    def finish(self) -> None:
        """See `Progress`."""
        self.progress.finish()


class Stopped(Exception):
    """Work that runs beside other work has to end, since the other ended early."""


@dataclass(frozen=True)
class LiveSamples:
    """Samples that are being written while a step reads them: their steps by hash."""

    steps: Mapping[str, Planned]
    stopped: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        """Until it is worth another look. Raises Stopped when nothing more will come."""
        if self.stopped.wait(LOOK_SECONDS):
            raise Stopped


@dataclass(frozen=True)
class StepContext:
    """Everything one step run needs. `live_samples` is of those inputs that may not be done yet.
    `launch` does trainings in other processes, where it is given."""

    planned: Planned
    folder: StepFolder
    store: Store
    inputs: PlanInputs
    prompts: Mapping[str, Prompt]
    engines: Engines
    progress: Progress
    live_samples: LiveSamples | None = None
    launch: Trainer | None = None

    def judge(self) -> Judge:
        """The judge of a judge step."""
        return self.planned.judges[self.planned.step.id]

    def chosen_prompts(self) -> list[Prompt]:
        """The prompts of this step, in the plan's order; a slot that no question fills is none."""
        return list(self.read_prompts())

    def read_prompts(self) -> Iterator[Prompt]:
        """`chosen_prompts`, one held at a time."""
        return (self.prompts[name] for name in self._chosen_names())

    def count_prompts(self) -> int:
        """How many `chosen_prompts` there are."""
        return sum(1 for _ in self._chosen_names())

    def _chosen_names(self) -> Iterator[str]:
        names = self.planned.prompts
        return (p for p in names if not p.startswith(SLOT) or p in self.prompts)

    def refuse_strangers(self, prompt_ids: Iterable[str]) -> None:
        """Raise ConfigError where completions are of a prompt that the experiment does not have."""
        strange = sorted(p for p in prompt_ids if p not in self.prompts)
        if strange:
            raise ConfigError(
                f"completions of prompt {strange[0]} were loaded, and that prompt is not among the "
                "experiment's prompts; add it to the prompts file"
            )

    def inputs_under(self, prefix: str) -> list[str]:
        """The hashes of the inputs called `prefix` or `prefix`/..., in the plan's order."""
        names = self.planned.inputs.items()
        return [digest for n, digest in names if n == prefix or n.startswith(prefix + "/")]

    def read_all(self, prefix: str, kind: str) -> Iterator[dict[str, Any]]:
        """Rows of one record kind from every input under `prefix`."""
        for digest in self.inputs_under(prefix):
            yield from self.store.step(digest).rows(kind)

    def by_prompt(self, prefix: str, kind: type[R]) -> ByPrompt[R]:
        """The records of one kind in the inputs under `prefix`, read as they are asked for."""
        return ByPrompt([self.store.step(digest) for digest in self.inputs_under(prefix)], kind)

    def completions(self, prefix: str = "completions") -> list[Completion]:
        """The completions in the inputs under `prefix`."""
        return list(self._read_records(prefix, Completion))

    def judgements(self, name: str) -> list[Judgement]:
        """The judgements in the input called `name`, or in none when it is absent."""
        return list(self._read_records(name, Judgement))

    def preferences(self, prefix: str = "preferences") -> list[Preference]:
        """The preferences in the inputs under `prefix`."""
        return list(self._read_records(prefix, Preference))

    def _read_records(self, prefix: str, kind: type[R]) -> Iterator[R]:
        for digest in self.inputs_under(prefix):
            yield from self.store.step(digest).records(kind)


class ByPrompt(Generic[R]):
    """The records of one kind in steps' folders by prompt, read as they are asked for."""

    def __init__(self, folders: Iterable[StepFolder], kind: type[R]):
        self._kind: type[R] = kind
        self._indexes = [folder.index(FILES[kind], "prompt_id") for folder in folders]
        for index in self._indexes:
            index.grow()

    def prompts(self) -> Iterator[str]:
        """The sorted ids of the prompts that have any."""
        ordered = merge(*(index.keys() for index in self._indexes))
        return (prompt_id for prompt_id, _ in groupby(ordered))

    def of(self, prompt_id: str) -> list[R]:
        """Those of one prompt, in the order of the inputs and of writing."""
        return [r for index in self._indexes for r in index.records(prompt_id, self._kind)]

    def parts(self, prompt_ids: Sequence[str]) -> list[Part]:
        """Those of some prompts, in the order of the inputs; they are read when asked for."""
        return [index.part(prompt_ids) for index in self._indexes]


def by_prompt(completions: Sequence[Completion]) -> dict[str, list[Completion]]:
    """Completions grouped by prompt id."""
    groups: dict[str, list[Completion]] = {}
    for completion in completions:
        groups.setdefault(completion.prompt_id, []).append(completion)
    return groups


def refuse_all_failed(what: str, calls: str, total: int, reasons: Counter[str], at: Path) -> None:
    """Raises EngineError where all of a step's records failed: that is no outcome to go on from.
    `what` are the records, and `calls` those whose failures left them without a value."""
    if 0 < total == reasons.total():
        why, count = next(iter(keep_commonest(reasons).items()))
        raise EngineError(
            f"none of the {total} {what} has a value: {count} {calls} failed: {why}. Mend that; to "
            f"ask the same again, delete {at}"
        )


_WORDS = {
    "tool_calls_lost": "the tool calls of {}",
    "tool_turns_lost": "what tools said in {}",
    "reasoning_lost": "the reasoning in {}",
}


def lost_by(engine: Engine, conversations: Iterable[Sequence[Message]]) -> dict[str, int]:
    """How many turns have something that the model of `engine` is not shown, by what it is; turns
    of prompts that are asked several times count once."""
    found: Counter[str] = Counter()
    if isinstance(engine, Losing):
        for messages in conversations:
            if any(has_more(message) for message in messages):
                found += engine.lost(messages)
    return dict(found)


def lost_notes(step: str, counts: Mapping[str, int]) -> list[str]:
    """A sentence on what was lost, or none."""
    found = {name: counts[name] for name in _WORDS if counts.get(name)}
    parts = [_WORDS[n].format("1 turn" if k == 1 else f"{k} turns") for n, k in found.items()]
    if not parts:
        return []
    said = " and ".join(parts)
    why = "its chat template, or its server's API, has no place for them"
    return [f"{step}: the model is not shown {said}: {why}"]


MOST_REASONS = 10
"""How many reasons for failures are named, the commonest first."""


def keep_commonest(reasons: Mapping[str, int]) -> dict[str, int]:
    """The commonest reasons with their counts; the others are counted together."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    if rest := ordered[MOST_REASONS:]:
        ordered = [*ordered[:MOST_REASONS], ("other reasons", sum(count for _, count in rest))]
    return dict(ordered)
