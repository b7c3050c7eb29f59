"""What a plan consists of: planned steps with their inputs and sizes, and the walk that makes them.

`Walk` is the state of a plan under construction: which output is the latest at each point, and what
names refer to. `Size` bounds from above how much a planned step does, before it runs.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlaif.config.arms import ArmSpec
from rlaif.config.models import RESERVED_MODELS, ModelSpec
from rlaif.config.rounds import in_rounds
from rlaif.config.steps import LoadStep
from rlaif.constitution.model import Constitution
from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Message, Prompt, content_hash
from rlaif.core.yamlio import Lines, Loc, suggest
from rlaif.data.sources import PromptSet
from rlaif.engines.base import GenerateRequest, Model
from rlaif.judges.base import Judge, most_calls, roles_of
from rlaif.pipeline.experiment_file import Experiment

DRIFT_PROMPTS = 16
"""How many of M0's held-out answers a moving judge rescores each round."""


UNHASHED = {"id", "uses", "checkpoint_every", "trackers", "gates"}
"""Keys of a training that change nothing in what it makes: a gate ends it or leaves it alone."""


@dataclass(frozen=True)
class Planned:
    """One step to run. `inputs` names the hashes of the steps whose output it reads; `arms` are
    those that have it in common."""

    hash: str
    kind: str
    id: str
    seed: int
    round: int
    step: Any
    inputs: dict[str, str] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    arms: tuple[str, ...] = ()

    @property
    def makes_model(self) -> bool:
        """Whether it is a training."""
        return "made" in self.models

    @property
    def sources(self) -> set[str]:
        """The hashes of the steps whose records or models it uses."""
        # What a step makes it does not read.
        models = [model.train_hash for role, model in self.models.items() if role != "made"]
        return {*self.inputs.values(), *filter(None, models)}


@dataclass(frozen=True)
class PlanInputs:
    """All that a plan depends on. `keys` is the weights' identity of every named model."""

    experiment: Experiment
    path: Path
    lines: Lines
    constitution: Constitution | None
    prompts: PromptSet
    judges: Mapping[str, Judge]
    keys: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    provisional: tuple[str, ...] = ()
    """What a dry run takes for granted, since it fetches nothing."""

    def loaded_hash(self, step: LoadStep) -> str:
        """The hash of the file or dataset that a load step reads."""
        return self.files[self.experiment.loaded_name(step) or ""]

    def fail(self, index: int, message: str, key: str | None = None) -> ConfigError:
        """A ConfigError at step `index` (and its key), with the line."""
        kind = self.experiment.steps[index].kind
        locs: list[Loc] = [("steps", index, kind, key)] if key else []
        locs += [("steps", index, kind), ("steps", index)]
        line = next((self.lines[loc] for loc in locs if loc in self.lines), None)
        return ConfigError(message, self.path, line)


def round_prompts(train: list[Prompt], count: int | None, seed: int, number: int) -> list[str]:
    """The ids of round `number`'s training prompts: a window over a seeded order, wrapping round.

    The order starts from sorted ids, so the order of the file changes nothing.
    """
    ids = sorted(p.prompt_id for p in train)
    if count is None or count >= len(ids):
        return ids
    # The seed alone decides the order, so that rounds move through one and the same.
    random.Random(content_hash("prompts", seed)).shuffle(ids)
    start = (number - 1) * count
    return sorted(ids[(start + i) % len(ids)] for i in range(count))


COUNTED_PROMPTS = 16
"""On how many prompts a judge's calls are counted."""


@dataclass(frozen=True)
class JudgeCalls:
    """A judge with its models by role, and what it is asked at most: `units` verdicts, model
    `calls` and new `tokens`."""

    judge: Judge
    models: Mapping[str, Model]
    units: int
    calls: int
    tokens: int


@dataclass(frozen=True)
class Size:
    """One step at most: `units` are completions, verdicts, pairs or optimiser examples, `calls`
    those to models, and `tokens` new ones. `judges` are those that it asks, counted in `calls`."""

    units: int
    calls: int = 0
    tokens: int = 0
    judges: tuple[JudgeCalls, ...] = ()


@dataclass
class Known:
    """The steps of a plan whose sizes are known already, by hash."""

    units: dict[str, int] = field(default_factory=dict)
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def records_read(self, planned: Planned, prefix: str) -> int:
        """How many records `planned` reads from its inputs whose names begin with `prefix`."""
        return sum(self.units.get(h, 0) for n, h in planned.inputs.items() if n.startswith(prefix))


def count_judge_calls(
    inputs: PlanInputs,
    planned: Planned,
    judge: Judge,
    models: Mapping[str, Model],
    count: int,
    answers: int,
) -> JudgeCalls:
    """What judging `answers` different answers to each of `count` prompts takes, by the prompts
    that cost most of a few."""
    every = inputs.prompts.every()
    ids: Collection[str] = set(planned.prompts)
    some = [p for p in every if p.prompt_id in ids or not ids][:COUNTED_PROMPTS]
    made = [_example_answer(number) for number in range(answers)]
    units = calls = tokens = 0
    for prompt in some:
        first = judge.calls(prompt, made, planned.seed)
        units, calls = max(units, len(first)), max(calls, most_calls(judge, first))
        written = [c.request for c in first if isinstance(c.request, GenerateRequest)]
        tokens = max(tokens, sum(request.sampling.max_new_tokens for request in written))
    return JudgeCalls(judge, models, count * max(units, calls), count * calls, count * tokens)


def _example_answer(number: int) -> Completion:
    text = f"answer {number}"
    messages: list[Message] = [{"role": "assistant", "content": text}]
    return Completion(text, "", number, messages, "", "", {}, "stop", digest=text)


class Walk:
    """One walk over the steps: of one seed and one arm, of which `label` says who labels."""

    def __init__(self, inputs: PlanInputs, seed: int, label: ArmSpec | None = None):
        self.inputs = inputs
        self.experiment = inputs.experiment
        self.seed = seed
        self.label = label
        self.initial = self.named("policy", "M0")
        # M0 is all of them until a round has trained another policy.
        self.policy = self.previous = self.earlier = self.initial
        self.round = 0
        self.done: list[Planned] = []
        self.by_id: dict[tuple[str, int], Planned] = {}
        self.completions: dict[str, Planned] = {}
        self.judgements: dict[str, Planned] = {}
        self.pairs: dict[str, Planned] = {}
        self.preferences: list[Planned] = []
        self.evaluations: dict[tuple[str, str], dict[str, str]] = {}
        self.reward_models: dict[str, Model] = {}
        self.replaced: dict[str, tuple[Planned, str]] = {}

    def next_round(self) -> None:
        """A new round: nothing is sampled, judged or paired in it yet."""
        self.round += 1
        self.earlier, self.previous = self.previous, self.policy
        self.completions, self.judgements, self.preferences = {}, {}, []
        self.pairs = {}

    def replace(self, old: Iterable[Planned], by: str) -> None:
        """The step `by` takes the place of these in this round: later ones see it alone."""
        self.replaced |= {planned.hash: (planned, by) for planned in old}

    def add(self, planned: Planned) -> Planned:
        """The next step of this plan."""
        self.done.append(planned)
        return planned

    def named(self, name: str, label: str | None = None) -> Model:
        """The model that the experiment calls `name`."""
        spec = self.experiment.models[name]
        return Model(self.inputs.keys[name], label or name, spec)

    def model(self, index: int, name: str, key: str) -> Model:
        """The model that `name` means at this point of the plan."""
        reserved = {"policy": self.policy, "current": self.policy, "initial": self.initial}
        reserved |= {"previous": self.previous, "earlier": self.earlier}
        if name in reserved:
            return reserved[name]
        # What `distill` has made goes before a given model of the same name.
        if name in self.reward_models:
            return self.reward_models[name]
        found = self.given(name)
        if found is None:
            raise self.inputs.fail(index, f"{key}: {no_model(name, self.experiment)}", key)
        return found

    def given(self, name: str) -> Model | None:
        """The model of that name or folder, which no step makes; None where there is none."""
        if name in self.experiment.models:
            return self.named(name)
        if name in self.inputs.keys:
            spec = replace_path(self.experiment.models["policy"], name)
            return Model(self.inputs.keys[name], name, spec)
        return None

    def asked(self, index: int, step: Any, key: str = "by") -> dict[str, Model]:
        """The models that a judge asks, by role, at this point of the plan."""
        names = self.names(step)
        return {role: self.model(index, name, key) for role, name in names.items()}

    def names(self, step: Any) -> dict[str, str]:
        """The names of the models that a judge asks, by role."""
        names: dict[str, str] = step.asks()
        return {role: names[role] for role in roles_of(self.inputs.judges[step.id])}

    def used(
        self,
        index: int,
        uses: list[str] | None,
        latest: Mapping[str, Planned],
        kinds: tuple[str, ...],
    ) -> list[Planned]:
        """The latest outputs, or those that `uses` names: ID (this round's), `ID?` (the same, or
        nothing where `when` left the step out), ID@ROUND, ID@last (the latest so far) or ID@* (all
        so far)."""
        if uses is None:
            return list(latest.values())
        found: list[Planned] = []
        for text in uses:
            name, _, when = text.removesuffix("?").partition("@")
            steps = self._outputs(name, when, kinds)
            if not steps and not (text.endswith("?") and self._is_left_out(name, kinds)):
                raise self._no_output(index, text, name, kinds)
            found += steps
        return list({s.hash: s for s in found}.values())

    def _outputs(self, name: str, when: str, kinds: tuple[str, ...]) -> list[Planned]:
        # The members of a pool are called ID/NUMBER.
        known = {
            (own, number): step
            for (own, number), step in self.by_id.items()
            if name in (own, own.partition("/")[0]) and step.kind in kinds
        }
        numbers = {number for _, number in known}
        if when == "last":
            numbers = {max(numbers, default=0)}
        elif when != "*":
            numbers &= {int(when)} if when.isdigit() else {self.round} if not when else set()
        return [step for (_, number), step in known.items() if number in numbers]

    def _is_left_out(self, name: str, kinds: tuple[str, ...]) -> bool:
        """Whether `when` leaves the step of that id out in this round."""
        entries = [e for e in self.experiment.steps if e.step.id == name and e.kind in kinds]
        return any(not in_rounds(entry.when, self.round) for entry in entries)

    def _no_output(self, index: int, text: str, name: str, kinds: tuple[str, ...]) -> ConfigError:
        if self._is_left_out(name, kinds) and "@" not in text:
            return self.inputs.fail(
                index,
                f"uses: step {name!r} does not run in round {self.round} (`when`): write "
                f'"{name}?" to go without it there, or {name}@last for its latest output',
                "uses",
            )
        known = sorted({i for (i, _), s in self.by_id.items() if s.kind in kinds})
        return self.inputs.fail(
            index,
            f"uses: {text!r} names no earlier {', '.join(kinds[:-1])} or {kinds[-1]} step"
            f"{suggest(name, known)}",
            "uses",
        )

    def facts(self, ids: tuple[str, ...] | None) -> list[Any]:
        """What of the prompts a judge or a check may read and their ids do not cover."""
        every = self.inputs.prompts.every()
        wanted = {p.prompt_id for p in every} if ids is None else set(ids)
        rows = [[p.prompt_id, p.tags, p.reference] for p in every if p.prompt_id in wanted]
        return sorted((row for row in rows if row[1] or row[2] is not None), key=lambda row: row[0])

    def origins(self, ids: list[str]) -> list[Any]:
        """Where these training prompts are from."""
        wanted = set(ids)
        kept = [p for p in self.inputs.prompts.train if p.prompt_id in wanted]
        return sorted([p.prompt_id, p.source, p.tags] for p in kept)

    def principle_weights(self) -> dict[str, float]:
        """The constitution's weights by principle; none without a constitution."""
        constitution = self.inputs.constitution
        return {p.id: p.weight for p in constitution.principles} if constitution else {}


def no_model(name: str, experiment: Experiment) -> str:
    """That a name is no model's, and what is near it."""
    known = sorted(RESERVED_MODELS | set(experiment.models))
    return f"{name!r} is no model{suggest(name, known)} or a model's folder"


def replace_path(spec: ModelSpec, path: str) -> ModelSpec:
    """The policy's settings for another folder of weights."""
    return spec.model_copy(update={"path": path, "role": None, "adapter": None})
