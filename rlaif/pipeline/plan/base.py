"""What a plan consists of: planned steps with their inputs and sizes, and the walk that makes them.

`Walk` is the state of a plan under construction: which output is the latest at each point, and what
names refer to. `Size` bounds from above how much a planned step does, before it runs.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from rlaif.config.arms import MAIN
from rlaif.config.models import INITIAL, RESERVED_MODELS, ModelSpec
from rlaif.config.steps import LoadStep
from rlaif.constitution.model import Constitution
from rlaif.core.errors import ConfigError
from rlaif.core.ids import sort_ids
from rlaif.core.records import Completion, Message, Prompt, content_hash
from rlaif.core.yamlio import Lines, Loc, line_of, suggest
from rlaif.data.prompt_table import PromptsById, sorted_ids
from rlaif.data.sources import PromptSet
from rlaif.engines.base import GenerateRequest, Model
from rlaif.judges.base import Judge, compares_judgements, most_calls, roles_of
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.stages import Stage, StepEntry, has_arm, in_rounds

SLOT = "q_"
"""How the id of a prompt begins that asks about answers which the run makes: a plan has one for
each that there may be."""
DRIFT_PROMPTS = 16
"""How many of M0's held-out answers a moving judge rescores each round."""


UNHASHED = {"id", "uses", "checkpoint_every", "trackers", "gates", "policy", "prompts", "teacher"}
"""Keys of a training that change nothing in what it makes: a gate ends it or leaves it alone. Data,
prompts and the teacher are covered by what they are, not by their names."""


@dataclass(frozen=True)
class Lesson:
    """Records that a training learned from: the training's id and round, the step that gave them,
    its hash and the name of their file."""

    training: str
    round: int
    source: str
    digest: str
    records: str


@dataclass(frozen=True)
class Planned:
    """One step to run. `inputs` names the hashes of the steps whose output it reads, `judges` are
    those that it asks, and `arms` those that have it in common. `round` counts over all stages, and
    `number` within its own, whose id is `stage`. `lessons` are what an evaluated model was trained
    on, which no hash of its own covers: that of the model does."""

    hash: str
    kind: str
    id: str
    seed: int
    round: int
    step: Any
    inputs: dict[str, str] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    prompts: Sequence[str] = ()
    options: dict[str, Any] = field(default_factory=dict)
    arms: tuple[str, ...] = ()
    judges: Mapping[str, Judge] = field(default_factory=dict)
    stage: str = MAIN
    number: int = 0
    lessons: tuple[Lesson, ...] = ()

    @property
    def makes_model(self) -> bool:
        """Whether it is a training."""
        return "made" in self.models

    @property
    def compares_judgements(self) -> bool:
        """Whether it is a judge step that compares judgements."""
        return self.kind == "judge" and any(map(compares_judgements, self.judges.values()))

    @property
    def sources(self) -> set[str]:
        """The hashes of the steps whose records or models it uses."""
        # What a step makes it does not read.
        models = [model.train_hash for role, model in self.models.items() if role != "made"]
        return {*self.inputs.values(), *filter(None, models)}


SOME_PROMPTS = 16
"""How many prompts stand for all where calls are counted and lengths are estimated."""


@dataclass(frozen=True)
class PlanInputs:
    """All that a plan depends on. `keys` is the weights' identity of every named model, `prompts`
    the set `main` and `sets` the others."""

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
    notes: tuple[str, ...] = ()
    """What a user should know of the prompts."""
    sets: Mapping[str, PromptSet] = field(default_factory=dict)
    constitutions: Mapping[str, Constitution] = field(default_factory=dict)
    """Those of judges that have one of their own, by the judge's id."""
    system_prompts: Mapping[str, str] = field(default_factory=dict)
    """The texts of the template files that sample steps name."""
    at: Mapping[tuple[int, int], list[StepEntry]] = field(default_factory=dict)
    """The steps of rounds in which `at` changes some, by place of the stage and round within it."""
    arms: Mapping[str, PlanInputs] = field(default_factory=dict)
    """The inputs of the arms that set keys; of the others these ones here."""
    arm: str | None = None
    """The arm that sets keys of its own, if any."""

    def set_named(self, name: str) -> PromptSet:
        """The prompts of a set."""
        return self.prompts if name == MAIN else self.sets[name]

    @cached_property
    def prompts_by_id(self) -> Mapping[str, Prompt]:
        """The prompts of all sets by id."""
        # An arm may ask questions of its own; its other sets are these here.
        every = [
            s for one in (self, *self.arms.values()) for s in (one.prompts, *one.sets.values())
        ]
        different = {id(one): one for one in every}.values()
        return PromptsById(part for one in different for part in one.by_id())

    def some_prompts(self, ids: Sequence[str] = ()) -> list[Prompt]:
        """The first prompts with these ids, which stand for all of them; without ids, of all."""
        every = self.prompts_by_id
        known = map(every.get, ids) if ids else every.values()
        return list(islice((p for p in known if p is not None), SOME_PROMPTS))

    @cached_property
    def _starts_and_facts(self) -> tuple[dict[str, Prompt], dict[str, list[Any]]]:
        # In one go: to read all prompts is most of what a plan takes.
        starts: dict[str, Prompt] = {}
        facts: dict[str, list[Any]] = {}
        for p in self.prompts_by_id.values():
            if p.environment is not None:
                starts[p.prompt_id] = p
            if p.tags or p.reference is not None or p.group is not None:
                group = [] if p.group is None else [p.group]
                facts[p.prompt_id] = [p.prompt_id, p.tags, p.reference, *group]
        return starts, facts

    @property
    def starts(self) -> dict[str, Prompt]:
        """The prompts that are starts of episodes, by id."""
        return self._starts_and_facts[0]

    @property
    def prompt_facts(self) -> dict[str, list[Any]]:
        """What of the prompts a judge or a check may read and their ids do not cover, by id, of
        those that have any."""
        return self._starts_and_facts[1]

    @cached_property
    def groups(self) -> dict[str, str]:
        """The groups of the prompts that have one, by id."""
        return {name: facts[3] for name, facts in self.prompt_facts.items() if len(facts) > 3}

    def with_slots(self, plan: Iterable[Planned]) -> PlanInputs:
        """The inputs with the questions that a plan has slots for, as sets by the steps' hashes."""
        asked = [p for p in plan if "slots" in p.options]
        sets = {p.hash: PromptSet(list(p.options["slots"]), [], 0) for p in asked}
        return dataclasses.replace(self, sets={**self.sets, **sets}) if sets else self

    def principle_weights(self) -> dict[str, float]:
        """The constitution's weights by principle, and by JUDGE/PRINCIPLE those of judges that have
        a constitution of their own (see `weights_of`)."""
        main = self.constitution
        found = {p.id: p.weight for p in main.principles} if main else {}
        return found | {
            f"{judge}/{principle.id}": principle.weight
            for judge, own in sorted(self.constitutions.items())
            for principle in own.principles
        }

    def fail_stage(self, stage: Stage, message: str) -> ConfigError:
        """A ConfigError at a stage, with the line."""
        ids = [one.id for one in self.experiment.all_stages]
        line = line_of(("stages", ids.index(stage.id)), self.lines)
        which = "" if self.arm is None else f"arm {self.arm}: "
        return ConfigError(f"{which}stage {stage.id}: {message}", self.path, line)

    def loaded_hash(self, step: LoadStep) -> str:
        """The hash of the file or dataset that a load step reads."""
        return self.files[self.experiment.loaded_name(step) or ""]

    def fail(self, index: int, message: str, key: str | None = None) -> ConfigError:
        """A ConfigError at step `index` (and its key), with the line."""
        entry = self.experiment.entries[index]
        kind = entry.kind
        place = self.experiment.step_locs[index]
        locs: list[Loc] = [(*place, kind, key)] if key else []
        locs += [(*place, kind), place]
        line = next((self.lines[loc] for loc in locs if loc in self.lines), None)
        which = "" if self.arm is None else f"arm {self.arm}: "
        return ConfigError(which + message, self.path, line, f"step {entry.step.id}")


def round_prompts(
    train: Sequence[Prompt], count: int | None, seed: int, number: int, first: int = 0
) -> Sequence[str]:
    """The ids of round `number`'s training prompts: a window over a seeded order, wrapping round,
    which is at place `first` in round 1. A window has the groups of prompts that begin in it, each
    whole, and is as wide as the widest group at least.

    The order starts from sorted ids, so the order of the file changes nothing.
    """
    total = len(train)
    if count is None or count >= total:
        return sorted_ids(train)
    units = group_prompts(train)
    # The seed alone decides the order, so that rounds move through one and the same.
    random.Random(content_hash("prompts", seed)).shuffle(units)
    count = max(count, *map(len, units))
    start = first + (number - 1) * count
    begins = accumulate(map(len, units[:-1]), initial=0)
    places = zip(units, begins, strict=True)
    inside = (unit for unit, place in places if (place - start) % total < count)
    return sorted(name for unit in inside for name in unit)


def group_prompts(prompts: Iterable[Prompt]) -> list[list[str]]:
    """The sorted ids of the prompts of each group, by the first of them; a prompt without a group
    stands alone."""
    alone: list[str] = []
    units: dict[str, list[str]] = {}
    for prompt in prompts:
        same = units.setdefault(prompt.group, []) if prompt.group else alone
        same.append(prompt.prompt_id)
    found = [[name] for name in sorted(alone)]
    return sorted([*found, *map(sorted, units.values())], key=itemgetter(0))


def widen_to_groups(groups: Iterable[str | None], count: int) -> int:
    """`count` prompts, or as many more as make whole groups, where all are as wide as the widest;
    `groups` are those of the prompts to take from."""
    width = max(Counter(group for group in groups if group).values(), default=1)
    return -(-count // width) * width


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
    prompts: dict[str, Sequence[str]] = field(default_factory=dict)

    def add(self, planned: Planned, size: Size) -> None:
        """One more step, after those that it reads."""
        self.units[planned.hash], self.prompts[planned.hash] = size.units, planned.prompts

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
    some = inputs.some_prompts(planned.prompts)
    made = [make_example_answer(number) for number in range(answers)]
    units = calls = tokens = 0
    for prompt in some:
        first = judge.calls(prompt, made, planned.seed)
        units, calls = max(units, len(first)), max(calls, most_calls(judge, first))
        written = [c.request for c in first if isinstance(c.request, GenerateRequest)]
        tokens = max(tokens, sum(request.sampling.max_new_tokens for request in written))
    return JudgeCalls(judge, models, count * max(units, calls), count * calls, count * tokens)


def make_example_answer(number: int) -> Completion:
    """An answer that stands for one that is not made yet; those of other numbers differ."""
    text = f"answer {number}"
    messages: list[Message] = [{"role": "assistant", "content": text}]
    return Completion(text, "", number, messages, "", "", {}, "stop", digest=text)


class Walk:
    """One walk over the steps: of one seed and one arm.

    `yardstick` is what all arms have in common: its prompts, evaluations and the judges that these
    ask measure every arm.
    """

    def __init__(
        self, inputs: PlanInputs, seed: int, arm: str = MAIN, yardstick: PlanInputs | None = None
    ):
        self.inputs = inputs
        self.yardstick = yardstick or inputs
        self.experiment = inputs.experiment
        self.seed = seed
        self.arm = arm
        self.label = self.experiment.arms.get(arm)
        self.initial = self.named("policy", "M0")
        # M0 is all of them until a round has trained another policy.
        self.policy = self.previous = self.earlier = self.initial
        self.stage = self.experiment.all_stages[0]
        self.round = self.number = self.before = 0
        """The round over all stages and within this one, and how many were before this one."""
        self.stage_starts: dict[str, int] = {self.stage.id: 0}
        self.done: list[Planned] = []
        self.by_id: dict[tuple[str, int], Planned] = {}
        self.completions: dict[str, Planned] = {}
        self.judgements: dict[str, Planned] = {}
        self.pairs: dict[str, Planned] = {}
        self.preferences: list[Planned] = []
        self.evaluations: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
        """What measures a model, by step and set of prompts, and by the model's key."""
        self.started: set[str] = set()
        """The evaluations that have M0's figures."""
        self.made: dict[str, dict[int, Model]] = {}
        """By the id of the step that makes it and the round over all stages."""
        self.replaced: dict[str, tuple[Planned, str]] = {}

    def begin_stage(self, stage: Stage) -> None:
        """The next stage, which has no round yet. An arm without it counts its rounds all the
        same, so that its other steps keep their hashes."""
        self.stage, self.number, self.before = stage, 0, self.round
        self.stage_starts[stage.id] = self.round

    def next_round(self) -> None:
        """A new round: nothing is sampled, judged or paired in it yet."""
        self.round += 1
        self.number += 1
        self.earlier, self.previous = self.previous, self.policy
        self.completions, self.judgements, self.preferences = {}, {}, []
        self.pairs = {}

    def replace(self, old: Iterable[Planned], by: str) -> None:
        """The step `by` takes the place of these in this round: later ones see it alone."""
        self.replaced |= {planned.hash: (planned, by) for planned in old}

    def add(self, planned: Planned) -> Planned:
        """The next step of this plan."""
        number = self.number if self.round else 0
        planned = dataclasses.replace(planned, stage=self.stage.id, number=number)
        self.done.append(planned)
        return planned

    def prompt_window(self, name: str, count: int | None) -> Sequence[str]:
        """The ids of this round's training prompts of a set: `count` of them, or all. A stage goes
        on where the widest window of the stages before it ended."""
        wholes = (self.experiment, self.yardstick.experiment)
        first = max(_window_end(whole, self.stage.id, name) for whole in wholes)
        train = self.inputs.set_named(name).train
        return round_prompts(train, count, self.seed, self.number, first)

    def named(self, name: str, label: str | None = None) -> Model:
        """The model that the experiment calls `name`."""
        spec = self.experiment.models[name]
        return Model(self.inputs.keys[name], label or name, spec)

    def model(self, index: int, name: str, key: str) -> Model:
        """The model that `name` means at this point of the plan: a reserved name, a given model or
        folder, or the id of the step that makes it, alone (the latest) or as ID@ROUND."""
        reserved = {"policy": self.policy, "current": self.policy, "initial": self.initial}
        reserved |= {"previous": self.previous, "earlier": self.earlier}
        if name in reserved:
            return reserved[name]
        model = self.made_by(name) or self.given(name)
        if model is None:
            raise self.inputs.fail(index, f"{key}: {self._no_model(name)}", key)
        self._refuse_unsure(index, name, key)
        return model

    def _refuse_unsure(self, index: int, text: str, key: str) -> None:
        """Raise ConfigError for the output of a round that may not run, since its stage may stop
        before it."""
        name, _, when = text.removesuffix("?").partition("@")
        stage = self._stage_named(self._stage_with(name))
        if stage.until is None or stage.id == self.stage.id or when == "*":
            return
        if not when.isdigit() or int(when) > stage.until.stops_rising:
            sure = f"{name}@1" + ("" if key != "uses" else f" or {name}@*")
            raise self.inputs.fail(
                index,
                f"{key}: {text!r} may not be there: stage {stage.id!r} may stop before that round "
                f"(`until`). Its best model is `policy` once it has ended; {sure} is sure",
                key,
            )

    def _stage_named(self, name: str) -> Stage:
        return next(stage for stage in self.experiment.all_stages if stage.id == name)

    def made_by(self, name: str) -> Model | None:
        """The latest model of a step, or with ID@ROUND that of a round of its stage; None where
        there is none so far."""
        own, _, when = name.partition("@")
        made = self.made.get(own, {})
        if not made or not when:
            return made[max(made)] if made else None
        first = self.stage_starts[self._stage_with(own)]
        return made.get(first + int(when)) if when.isdigit() else None

    def _stage_with(self, name: str) -> str:
        """The stage of the latest step with an id: this one, or the last before it that has it."""
        for stage in (self.stage, *reversed(self.experiment.all_stages)):
            if stage.id in self.stage_starts and any(e.step.id == name for e in stage.steps):
                return stage.id
        return self.stage.id

    def _no_model(self, name: str) -> str:
        own = name.partition("@")[0]
        if own in {*self.experiment.made_models, *self.yardstick.experiment.made_models}:
            why = f"no step {own!r} runs before this one"
            if name != own and own in self.made:
                why = f"step {own!r} has made none in that round of its stage"
            elif own not in self.experiment.made_models:
                why = f"this arm has no step {own!r}"
            return f"{name!r} is not made yet: {why}"
        return no_model(name, self.experiment)

    def label_made(self, name: str) -> str:
        """What the model that step `name` makes in this round is called in reports and records."""
        experiment = self.yardstick.experiment
        alone = len(experiment.all_stages) == 1
        if alone and [e.step.id for e in experiment.entries if e.kind == "train"] == [name]:
            return f"M{self.round}"
        return f"{name}@{self.number}" if self.stage.rounds > 1 else name

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

    def frozen_models(self, judge: Any, judged_by: str = INITIAL) -> dict[str, Model]:
        """The models of a judge that measures: reserved names mean one frozen model, M0 or another
        that is made once. Raises ConfigError for a name of none."""
        own = Walk(self.yardstick, self.seed)
        found = {}
        asks = judge.asks()
        for role in roles_of(self.yardstick.judges[judge.id]):
            name = asks[role]
            if name in RESERVED_MODELS:
                model = own.initial if judged_by == INITIAL else self.made_by(judged_by)
            else:
                model = self.made_by(name) or own.given(name)
            if model is None:
                line = line_of(self.yardstick.experiment.loc_of(judge.id), self.yardstick.lines)
                fault = no_model(name, self.experiment)
                raise ConfigError(fault, self.inputs.path, line, f"judge {judge.id}")
            found[role] = model
        return found

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
        key: str = "uses",
    ) -> list[Planned]:
        """The latest outputs, or those that `uses` (the value of `key`) names: ID (of this stage
        this round's, of an earlier one its last round's), `ID?` (the same, or nothing where `when`
        or `arms` left the step out), ID@ROUND, ID@last (the latest so far) or ID@* (all so
        far)."""
        if uses is None:
            return list(latest.values())
        found: list[Planned] = []
        for text in uses:
            name, _, when = text.removesuffix("?").partition("@")
            steps = self._outputs(name, when, kinds)
            if not steps and not (text.endswith("?") and self._why_left_out(name, kinds)):
                raise self._no_output(index, text, name, kinds, key)
            if steps:
                self._refuse_unsure(index, text, key)
            found += steps
        return list({s.hash: s for s in found}.values())

    def _outputs(self, name: str, when: str, kinds: tuple[str, ...]) -> list[Planned]:
        # The members of a pool are called ID/NUMBER.
        known = {
            (own, number): step
            for (own, number), step in self.by_id.items()
            if name in (own, own.partition("/")[0]) and step.kind in kinds
        }
        stage = self._stage_with(name)
        numbers = {n for (_, n), step in known.items() if step.stage == stage}
        if when == "last" or (not when and stage != self.stage.id):
            numbers = {max(numbers, default=0)}
        elif when != "*":
            first = self.stage_starts[stage]
            turn = first + int(when) if when.isdigit() else 0 if when else self.round
            numbers &= {turn}
        return [step for (_, number), step in known.items() if number in numbers]

    def _why_left_out(self, name: str, kinds: tuple[str, ...]) -> str | None:
        """Why the step of that id does not run here; None where it does, or there is none."""
        own = {entry.step.id for entry in self.experiment.entries}
        for stage in self.yardstick.experiment.all_stages:
            for entry in stage.steps:
                if entry.step.id != name or entry.kind not in kinds:
                    continue
                arms = has_arm(stage.arms, self.arm) and has_arm(entry.arms, self.arm)
                if not arms or name not in own:
                    return f"is not in arm {self.arm}"
                if stage.id == self.stage.id and not in_rounds(entry.when, self.number):
                    return f"does not run in round {self.number} (`when`)"
        return None

    def _no_output(
        self, index: int, text: str, name: str, kinds: tuple[str, ...], key: str
    ) -> ConfigError:
        left_out = self._why_left_out(name, kinds)
        if left_out is not None and "@" not in text:
            return self.inputs.fail(
                index,
                f'{key}: step {name!r} {left_out}: write "{name}?" to go without it there, or '
                f"{name}@last for its latest output",
                key,
            )
        known = sorted({i for (i, _), s in self.by_id.items() if s.kind in kinds})
        return self.inputs.fail(
            index,
            f"{key}: {text!r} names no earlier {list_choices(kinds)} step{suggest(name, known)}",
            key,
        )

    def facts(self, ids: Sequence[str] | None) -> list[Any]:
        """What of the prompts a judge or a check may read and their ids do not cover."""
        facts = self.inputs.prompt_facts
        # Prompts without any are not looked at: they may be many.
        wanted = facts.keys() if ids is None else [name for name in ids if name in facts]
        return [facts[name] for name in sorted(set(wanted))]

    def origins(self, ids: Sequence[str]) -> list[Any]:
        """Where these training prompts are from."""
        every = self.inputs.prompts_by_id
        kept = (every[name] for name in sort_ids(ids) if name in every)
        return [[p.prompt_id, p.source, p.tags] for p in kept]

    def principle_weights(self) -> dict[str, float]:
        """The constitution's weights by principle; none without a constitution."""
        return self.inputs.principle_weights()

    def yardstick_weights(self) -> dict[str, float]:
        """Those by which every arm is measured."""
        return self.yardstick.principle_weights()


def _window_end(experiment: Experiment, stage_id: str, name: str) -> int:
    """Where the windows of a set of prompts end, over its seeded order, before a stage begins."""
    end = 0
    for stage in experiment.all_stages:
        if stage.id == stage_id:
            break
        counts = [
            entry.sample.prompt_count or 0
            for entry in stage.steps
            if entry.sample is not None and (entry.sample.prompt_set or stage.prompts) == name
        ]
        end += max(counts, default=0) * stage.rounds
    return end


def list_choices(names: Sequence[str]) -> str:
    """Names as a choice: "a, b or c"."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def no_model(name: str, experiment: Experiment) -> str:
    """That a name is no model's, and what is near it."""
    known = sorted(RESERVED_MODELS | {*experiment.models, *experiment.made_models})
    return f"{name!r} is no model{suggest(name, known)} or a model's folder"


def replace_path(spec: ModelSpec, path: str) -> ModelSpec:
    """The policy's settings for another folder of weights."""
    return spec.model_copy(update={"path": path, "role": None, "adapter": None})
