"""The plan: an experiment unrolled into steps whose hashes are known before anything runs.

A step's hash covers what can change its output and nothing else, so a finished step is found again
after an edit that does not concern it, and an edit redoes exactly what it must. Pure: nothing is
read here but what `PlanInputs` holds.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlaif.config import (
    RESERVED_MODELS,
    TRAINABLE,
    DistillStep,
    EvaluateStep,
    Experiment,
    LoadStep,
    ModelSpec,
    OnPolicyTrain,
    PairStep,
    ReferenceTrain,
    SampleStep,
    TrainStep,
)
from rlaif.constitution import Constitution
from rlaif.data.sources import PromptSet
from rlaif.engines.base import Model
from rlaif.errors import ConfigError
from rlaif.judges.base import Judge, roles_of
from rlaif.records import Prompt, content_hash
from rlaif.yamlio import Lines, Loc, suggest

# Raised when the code of a step kind changes its output for the same inputs.
VERSIONS = {
    "sample": 1,
    "judge": 1,
    "pair": 1,
    "distill": 1,
    "train": 3,
    "logprobs": 1,
    "evaluate": 1,
    "load": 1,
}

DRIFT_PROMPTS = 16
"""How many of M0's held-out answers a moving judge rescores each round."""


@dataclass(frozen=True)
class Planned:
    """One step to run. `inputs` names the hashes of the steps whose output it reads."""

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

    def fail(self, index: int, message: str, key: str | None = None) -> ConfigError:
        """A ConfigError at step `index` (and its key), with the line."""
        kind = self.experiment.steps[index].kind
        locs: list[Loc] = [("steps", index, kind, key)] if key else []
        locs += [("steps", index, kind), ("steps", index)]
        line = next((self.lines[loc] for loc in locs if loc in self.lines), None)
        return ConfigError(message, self.path, line)


def make_plan(inputs: PlanInputs) -> list[Planned]:
    """Every step of every seed, in the order of running; equal steps appear once."""
    planned: dict[str, Planned] = {}
    for seed in inputs.experiment.all_seeds:
        for step in _Unroller(inputs, seed).steps():
            planned.setdefault(step.hash, step)
    return list(planned.values())


def round_prompts(train: list[Prompt], count: int | None, seed: int, number: int) -> list[str]:
    """The ids of round `number`'s training prompts: a window over a seeded order, wrapping round.

    The order starts from sorted ids, so the order of the file changes nothing.
    """
    ids = sorted(p.prompt_id for p in train)
    if count is None or count >= len(ids):
        return ids
    random.Random(content_hash("prompts", seed)).shuffle(ids)
    start = (number - 1) * count
    return sorted(ids[(start + i) % len(ids)] for i in range(count))


class _Unroller:
    """Walks the steps of one seed and keeps what is latest at each point."""

    def __init__(self, inputs: PlanInputs, seed: int):
        self.inputs = inputs
        self.experiment = inputs.experiment
        self.seed = seed
        self.initial = self._named("policy", "M0")
        self.policy = self.previous = self.earlier = self.initial
        self.round = 0
        self.done: list[Planned] = []
        self.by_id: dict[tuple[str, int], Planned] = {}
        self.completions: dict[str, Planned] = {}
        self.judgements: dict[str, Planned] = {}
        self.preferences: list[Planned] = []
        self.evaluations: dict[tuple[str, str], dict[str, str]] = {}
        self.reward_models: dict[str, Model] = {}

    def steps(self) -> list[Planned]:
        """The whole plan of this seed."""
        distilled = {e.distill.id for e in self.experiment.steps if e.distill is not None}
        for index, entry in enumerate(self.experiment.steps):
            if entry.judge is not None and not distilled & set(entry.judge.asks().values()):
                self._asked(index, entry.judge)
        for index, entry in enumerate(self.experiment.steps):
            if entry.evaluate is not None:
                self._check_judges(index, entry.evaluate)
                self._evaluate(entry.evaluate, self.initial)
        for number in range(1, self.experiment.rounds + 1):
            self.round = number
            self.earlier, self.previous = self.previous, self.policy
            self.completions, self.judgements, self.preferences = {}, {}, []
            for index, entry in enumerate(self.experiment.steps):
                self._step(index, entry.step)
        return self.done

    def _step(self, index: int, step: Any) -> None:
        if isinstance(step, SampleStep):
            self._sample(index, step)
        elif isinstance(step, LoadStep):
            self._load(step)
        elif isinstance(step, PairStep):
            self._pair(index, step)
        elif isinstance(step, DistillStep):
            self._distill(index, step)
        elif isinstance(step, OnPolicyTrain):
            self._train_on_policy(index, step)
        elif isinstance(step, TrainStep):
            self._train(index, step)
        elif isinstance(step, EvaluateStep):
            self._evaluate(step, self.policy)
        else:
            self._judge(index, step)

    def _add(self, planned: Planned) -> Planned:
        self.done.append(planned)
        return planned

    def _hash(self, kind: str, *parts: Any) -> str:
        return content_hash(kind, VERSIONS[kind], *parts)

    def _named(self, name: str, label: str | None = None) -> Model:
        spec = self.experiment.models[name]
        return Model(self.inputs.keys[name], label or name, spec)

    def _model(self, index: int, name: str, key: str) -> Model:
        """The model that `name` means at this point of the plan."""
        reserved = {"policy": self.policy, "current": self.policy, "initial": self.initial}
        reserved |= {"previous": self.previous, "earlier": self.earlier}
        if name in reserved:
            return reserved[name]
        if name in self.reward_models:
            return self.reward_models[name]
        if name in self.experiment.models:
            return self._named(name)
        if name in self.inputs.keys:
            spec = replace_path(self.experiment.models["policy"], name)
            return Model(self.inputs.keys[name], name, spec)
        known = sorted(RESERVED_MODELS | set(self.experiment.models))
        raise self.inputs.fail(
            index, f"{key}: {name!r} is no model{suggest(name, known)} or a model's folder", key
        )

    def _sample(self, index: int, step: SampleStep) -> None:
        model = self._model(index, step.by, "by")
        ids = round_prompts(self.inputs.prompts.train, step.prompts, self.seed, self.round)
        planned = self._sampled(step, model, ids, f"{self.seed}/{self.round}", step.id)
        self.completions = {step.id: planned}
        self.judgements, self.preferences = {}, []
        self.by_id[step.id, self.round] = planned

    def _sampled(
        self, step: SampleStep, model: Model, ids: list[str], sampling_seed: str, name: str
    ) -> Planned:
        keys = step.model_dump(mode="json", exclude={"id", "by", "prompts"})
        digest = self._hash("sample", keys, model.identity(), ids, sampling_seed)
        return self._add(
            Planned(
                digest,
                "sample",
                name,
                self.seed,
                self.round,
                step,
                models={"by": model},
                prompts=tuple(ids),
                options={"sampling_seed": sampling_seed},
            )
        )

    def _load(self, step: LoadStep) -> None:
        labels = step.model_dump(mode="json", include={"format", "columns", "on_error"})
        read = [labels] if step.format is not None or step.columns is not None else []
        digest = self._hash("load", step.type, self.inputs.files[step.path], self.round, *read)
        planned = self._add(Planned(digest, "load", step.id, self.seed, self.round, step))
        self.by_id[step.id, self.round] = planned
        if step.type == "completions":
            self.completions = {step.id: planned}
            self.judgements = {}
        elif step.type == "judgements":
            self.judgements[step.id] = planned
        else:
            self.preferences.append(planned)

    def _judge(self, index: int, step: Any) -> None:
        sources = self._used(index, step.uses, self.completions, ("sample", "load"))
        if not sources:
            raise self.inputs.fail(index, f"judge {step.id!r} has no completions: sample first")
        planned = self._judged(step, sources, self._asked(index, step), step.id)
        self.judgements[step.id] = planned
        self.by_id[step.id, self.round] = planned

    def _asked(self, index: int, step: Any, key: str = "by") -> dict[str, Model]:
        """The models that a judge asks, by role, at this point of the plan."""
        asked = self._names(step)
        return {role: self._model(index, name, key) for role, name in asked.items()}

    def _names(self, step: Any) -> dict[str, str]:
        """The names of the models that a judge asks, by role."""
        names: dict[str, str] = step.asks()
        return {role: names[role] for role in roles_of(self.inputs.judges[step.id])}

    def _judged(
        self,
        step: Any,
        sources: list[Planned],
        models: dict[str, Model],
        name: str,
        limit: int | None = None,
    ) -> Planned:
        judge = self.inputs.judges[step.id]
        # Loaded completions bring their own prompts: then no limit is known here, and all count.
        known = all(s.prompts for s in sources)
        prompts = (
            tuple(dict.fromkeys(p for s in sources for p in s.prompts))[:limit] if known else ()
        )
        parts = [s.hash for s in sources]
        identities = {role: model.identity() for role, model in sorted(models.items())}
        # A judge of one model is known by that model alone.
        identity = identities.get("by") if len(identities) < 2 else identities
        facts = self._facts(prompts if known else None)
        return self._add(
            Planned(
                self._hash("judge", judge.judge_hash, identity, parts, prompts, facts, self.seed),
                "judge",
                name,
                self.seed,
                self.round,
                step,
                inputs={f"completions/{i}": s.hash for i, s in enumerate(sources)},
                models=models,
                prompts=prompts,
            )
        )

    def _facts(self, ids: tuple[str, ...] | None) -> list[Any]:
        """What of the prompts a judge or a check may read and their ids do not cover."""
        every = [*self.inputs.prompts.train, *self.inputs.prompts.heldout]
        wanted = {p.prompt_id for p in every} if ids is None else set(ids)
        rows = [[p.prompt_id, p.tags, p.reference] for p in every if p.prompt_id in wanted]
        return sorted((row for row in rows if row[1] or row[2] is not None), key=lambda row: row[0])

    def _pair(self, index: int, step: PairStep) -> None:
        if any("@" in name for name in step.uses or ()):
            message = "uses: a pair step takes this round's judgements; name them without `@`"
            raise self.inputs.fail(index, message, "uses")
        if step.strategy == "reference":
            self._paired_with_references(index, step)
            return
        used = self._used(index, step.uses, self.judgements, ("judge", "load"))
        if not used:
            raise self.inputs.fail(index, "pair has no judgements: add a judge step before it")
        ids = {p.id for p in used}
        unknown = sorted(set(step.weights or {}) - ids)
        if unknown:
            hint = suggest(unknown[0], sorted(ids))
            raise self.inputs.fail(
                index, f"weights: {unknown[0]!r} is no judge before this step{hint}", "weights"
            )
        if step.weights is not None and not any(step.weights.values()):
            raise self.inputs.fail(index, "weights: every weight is 0; nothing counts", "weights")
        if step.consistency is not None and step.consistency not in ids:
            hint = suggest(step.consistency, sorted(ids))
            message = f"consistency: {step.consistency!r} is no judge before this step{hint}"
            raise self.inputs.fail(index, message, "consistency")
        if step.consistency in (step.weights or {}) or ids == {step.consistency}:
            message = (
                f"consistency: {step.consistency!r} is compared with the judges that choose the "
                "pairs; give it no weight, and have at least one other judge"
            )
            raise self.inputs.fail(index, message, "consistency")
        inputs = {f"judgements/{p.id}": p.hash for p in used}
        inputs |= {f"completions/{k}": p.hash for k, p in self.completions.items()}
        if step.standardise == "initial":
            first = {p.id: self.by_id.get((p.id, 1)) for p in used}
            inputs |= {f"initial/{i}": p.hash for i, p in first.items() if p is not None}
        weights = self._principle_weights()
        keys = step.model_dump(mode="json", exclude={"id", "uses"})
        digest = self._hash("pair", keys, inputs, weights, self.seed, self.round)
        self._pairs(step, digest, inputs, used, {"principle_weights": weights})

    def _paired_with_references(self, index: int, step: PairStep) -> None:
        if not self.completions:
            raise self.inputs.fail(index, "pair has no completions: sample first")
        if not any(p.reference for p in self.inputs.prompts.train):
            raise self.inputs.fail(
                index,
                "strategy: no training prompt has a `reference` answer; give the prompts file that "
                "column, or name it with `prompts.columns.reference`",
                "strategy",
            )
        used = list(self.completions.values())
        inputs = {f"completions/{k}": p.hash for k, p in self.completions.items()}
        keys = step.model_dump(mode="json", exclude={"id", "uses"})
        ids = tuple(p for u in used for p in u.prompts)
        digest = self._hash("pair", keys, inputs, self._facts(ids or None), self.round)
        self._pairs(step, digest, inputs, used, {})

    def _pairs(
        self,
        step: PairStep,
        digest: str,
        inputs: dict[str, str],
        used: list[Planned],
        options: dict[str, Any],
    ) -> None:
        prompts = tuple(dict.fromkeys(p for u in used for p in u.prompts))
        place = (self.seed, self.round)
        planned = self._add(
            Planned(digest, "pair", step.id, *place, step, inputs, {}, prompts, options)
        )
        self.preferences = [planned]
        self.by_id[step.id, self.round] = planned

    def _principle_weights(self) -> dict[str, float]:
        constitution = self.inputs.constitution
        return {p.id: p.weight for p in constitution.principles} if constitution else {}

    def _train(self, index: int, step: TrainStep) -> None:
        used = self._preferences(index, step)
        self.policy = self._trained(index, "train", step, used, f"M{self.round}")

    def _distill(self, index: int, step: DistillStep) -> None:
        used = self._preferences(index, step)
        made = self._trained(index, "distill", step, used, f"{step.id}{self.round}")
        self.reward_models[step.id] = made

    def _train_on_policy(self, index: int, step: OnPolicyTrain) -> None:
        """The rewards' judges and the prompts stand where other methods have preferences."""
        judges = self.experiment.all_judges()
        asked: dict[str, Model] = {}
        for name in step.rewards:
            if name not in judges:
                hint = suggest(name, sorted(judges))
                raise self.inputs.fail(index, f"rewards: {name!r} is no judge{hint}", "rewards")
            for role, model in self._asked(index, judges[name], "rewards").items():
                asked[f"judge/{name}" if role == "by" else f"judge/{name}/{role}"] = model
        latest = {p.id: p for p in self.preferences}
        mixes = getattr(step, "ptx_weight", 0.0) > 0
        used = self._used(index, step.uses, latest, ("pair", "load")) if mixes else []
        if mixes and not used:
            raise self.inputs.fail(index, "ptx_weight needs preferences before it", "ptx_weight")
        ids = tuple(round_prompts(self.inputs.prompts.train, None, self.seed, self.round))
        needed = step.batch_size * step.sync_every
        if needed > len(ids):
            raise self.inputs.fail(
                index,
                f"a rollout needs {needed} prompts (batch_size x sync_every), and {len(ids)} are "
                "for training",
                "batch_size",
            )
        if step.n < 2 and any(self.inputs.judges[name].comparative for name in step.rewards):
            raise self.inputs.fail(index, "a judge that compares answers needs n of 2 or more", "n")
        parts = [
            {name: self.inputs.judges[name].judge_hash for name in step.rewards},
            {name: model.identity() for name, model in asked.items()},
            self._principle_weights(),
            ids,
            self._facts(ids),
            self.round,
        ]
        self.policy = self._trained(index, "train", step, used, f"M{self.round}", parts, asked, ids)

    def _preferences(self, index: int, step: TrainStep) -> list[Planned]:
        latest = {p.id: p for p in self.preferences}
        used = self._used(index, step.uses, latest, ("pair", "load"))
        if not used:
            kind = self.experiment.steps[index].kind
            raise self.inputs.fail(index, f"{kind} has no preferences: add a pair or load step")
        return used

    def _trained(
        self,
        index: int,
        kind: str,
        step: TrainStep,
        used: list[Planned],
        label: str,
        parts: Sequence[Any] = (),
        judges: Mapping[str, Model] | None = None,
        prompts: tuple[str, ...] = (),
    ) -> Model:
        """Plan one training and return the model that it will make."""
        models = {"start": self._model(index, step.from_, "from")}
        if isinstance(step, ReferenceTrain):
            models["reference"] = self._model(index, step.reference, "reference")
        for model in models.values():
            if model.spec.engine not in TRAINABLE:
                raise self.inputs.fail(
                    index, f"{model.label}: engine {model.spec.engine!r} cannot be trained"
                )
        keys = step.model_dump(mode="json", exclude={"id", "uses", "checkpoint_every", "trackers"})
        digest = self._hash(
            kind,
            keys,
            [p.hash for p in used],
            {role: model.identity() for role, model in models.items()},
            self.seed,
            *parts,
        )
        made = Model(f"train:{digest}", label, models["start"].spec, digest)
        planned = self._add(
            Planned(
                digest,
                kind,
                step.id,
                self.seed,
                self.round,
                step,
                inputs={f"preferences/{i}": p.hash for i, p in enumerate(used)},
                models={**models, **(judges or {}), "made": made},
                prompts=prompts,
                options={
                    "completions": [h for p in used for h in _completion_inputs(p)],
                    "principle_weights": self._principle_weights(),
                },
            )
        )
        self.by_id[step.id, self.round] = planned
        return made

    def _used(
        self,
        index: int,
        uses: list[str] | None,
        latest: Mapping[str, Planned],
        kinds: tuple[str, ...],
    ) -> list[Planned]:
        """The latest outputs, or those that `uses` names: ID, ID@ROUND or ID@* (all so far)."""
        if uses is None:
            return list(latest.values())
        found: list[Planned] = []
        for text in uses:
            name, _, when = text.partition("@")
            rounds = [self.round] if not when else range(1, self.round + 1)
            if when and when != "*":
                rounds = [int(when)] if when.isdigit() else []
            steps = [self.by_id[name, r] for r in rounds if (name, r) in self.by_id]
            steps = [s for s in steps if s.kind in kinds]
            if not steps:
                known = sorted({i for (i, _), s in self.by_id.items() if s.kind in kinds})
                raise self.inputs.fail(
                    index,
                    f"uses: {text!r} names no earlier {' or '.join(kinds)} step"
                    f"{suggest(name, known)}",
                    "uses",
                )
            found += steps
        return list({s.hash: s for s in found}.values())

    def _check_judges(self, index: int, step: EvaluateStep) -> None:
        unknown = sorted(set(step.judges or []) - set(self.experiment.all_judges()))
        if unknown:
            hint = suggest(unknown[0], sorted(self.experiment.all_judges()))
            raise self.inputs.fail(index, f"judges: {unknown[0]!r} is no judge{hint}", "judges")

    def _evaluate(self, step: EvaluateStep, model: Model) -> None:
        parts = self._measured(step, model)
        inputs = dict(parts)
        moved = model.key != self.initial.key
        if moved:
            inputs |= {f"initial/{k}": v for k, v in self._measured(step, self.initial).items()}
            inputs |= self._drift(step, model)
        if moved and "previous" in step.against:
            inputs |= {f"previous/{k}": v for k, v in self._measured(step, self.previous).items()}
        if self.round:
            inputs |= {f"train/completions/{k}": p.hash for k, p in self.completions.items()}
            inputs |= {f"train/judgements/{k}": p.hash for k, p in self.judgements.items()}
            inputs |= {f"train/preferences/{p.id}": p.hash for p in self.preferences}
        weights = self._principle_weights()
        keys = step.model_dump(mode="json", exclude={"id"})
        ids = tuple(p.prompt_id for p in self.inputs.prompts.heldout)
        facts = self._facts(ids) if step.checks else []
        planned = self._add(
            Planned(
                self._hash("evaluate", keys, inputs, weights, facts, self.seed, self.round),
                "evaluate",
                step.id,
                self.seed,
                self.round,
                step,
                inputs,
                models={"policy": model, "initial": self.initial},
                prompts=ids,
                options={"principle_weights": weights},
            )
        )
        self.by_id[step.id, self.round] = planned

    def _eval_judges(self, step: EvaluateStep) -> list[Any]:
        """Without those that a distilled model answers: it is new in every round, so its rewards
        cannot be compared between rounds."""
        judges = self.experiment.all_judges()
        moving = {e.distill.id for e in self.experiment.steps if e.distill is not None}
        wanted = [judges[j] for j in (step.judges if step.judges is not None else judges)]
        return [judge for judge in wanted if not moving & set(judge.asks().values())]

    def _frozen(self, judge: Any) -> dict[str, Model]:
        """An evaluation never uses a moving judge: reserved names mean the frozen M0."""
        return {
            role: self.initial if name in RESERVED_MODELS else self._named(name)
            for role, name in self._names(judge).items()
        }

    def _measured(self, step: EvaluateStep, model: Model) -> dict[str, str]:
        """Sample the held-out prompts from `model`, judge them, score them under M0."""
        if (step.id, model.key) in self.evaluations:
            return self.evaluations[step.id, model.key]
        template = next((e.sample for e in self.experiment.steps if e.sample), SampleStep())
        changed = {"n": step.n, "id": f"{step.id}.sample"}
        for key in ("temperature", "max_new_tokens"):
            if getattr(step, key) is not None:
                changed[key] = getattr(step, key)
        ids = sorted(p.prompt_id for p in self.inputs.prompts.heldout)
        sample = template.model_copy(update=changed)
        # The same random numbers for every model make the paired differences tighter.
        sampled = self._sampled(sample, model, ids, f"heldout/{self.seed}", f"{step.id}.sample")
        parts = {"completions": sampled.hash}
        for judge in self._eval_judges(step):
            pool = [sampled]
            if self.inputs.judges[judge.id].comparative:
                if model.key == self.initial.key:
                    continue
                first = self.evaluations[step.id, self.initial.key]["completions"]
                pool.append(next(p for p in self.done if p.hash == first))
            judged = self._judged(judge, pool, self._frozen(judge), f"{step.id}.{judge.id}")
            parts[f"judgements/{judge.id}"] = judged.hash
        parts["logprobs"] = self._add(
            Planned(
                self._hash("logprobs", sampled.hash, self.initial.identity()),
                "logprobs",
                f"{step.id}.logprobs",
                self.seed,
                self.round,
                step,
                inputs={"completions/0": sampled.hash},
                models={"by": self.initial},
                prompts=sampled.prompts,
                options={"own": model.key == self.initial.key},
            )
        ).hash
        self.evaluations[step.id, model.key] = parts
        return parts

    def _drift(self, step: EvaluateStep, model: Model) -> dict[str, str]:
        """Each moving judge's verdicts on M0's held-out answers, a fixed set of texts."""
        found = {}
        first = self.evaluations[step.id, self.initial.key]["completions"]
        fixed = next(p for p in self.done if p.hash == first)
        for judge in self._eval_judges(step):
            now = {r: model for r, n in self._names(judge).items() if n in ("policy", "current")}
            if now and not self.inputs.judges[judge.id].comparative:
                name = f"{step.id}.drift.{judge.id}"
                models = self._frozen(judge) | now
                judged = self._judged(judge, [fixed], models, name, DRIFT_PROMPTS)
                found[f"drift/{judge.id}"] = judged.hash
        return found


def _completion_inputs(planned: Planned) -> list[str]:
    return [h for name, h in planned.inputs.items() if name.startswith("completions/")]


def replace_path(spec: ModelSpec, path: str) -> ModelSpec:
    """The policy's settings for another folder of weights."""
    return spec.model_copy(update={"path": path, "role": None})
