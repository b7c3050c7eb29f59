"""The state of a plan that is being made: what is latest at each point, and what names mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rlaif.config.arms import ArmSpec
from rlaif.config.models import RESERVED_MODELS, ModelSpec
from rlaif.core.yamlio import suggest
from rlaif.engines.base import Model
from rlaif.judges.base import roles_of
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.plan.base import PlanInputs, Planned


class Walk:
    """One walk over the steps: of one seed and one arm, of which `label` says who labels."""

    def __init__(self, inputs: PlanInputs, seed: int, label: ArmSpec | None = None):
        self.inputs = inputs
        self.experiment = inputs.experiment
        self.seed = seed
        self.label = label
        self.initial = self.named("policy", "M0")
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
        """The latest outputs, or those that `uses` names: ID, ID@ROUND or ID@* (all so far)."""
        if uses is None:
            return list(latest.values())
        found: list[Planned] = []
        for text in uses:
            name, _, when = text.partition("@")
            rounds = [self.round] if not when else range(1, self.round + 1)
            if when and when != "*":
                rounds = [int(when)] if when.isdigit() else []
            steps = [
                step
                for (known, number), step in self.by_id.items()
                # The members of a pool are called ID/NUMBER.
                if name in (known, known.partition("/")[0]) and number in rounds
            ]
            steps = [s for s in steps if s.kind in kinds]
            if not steps:
                known = sorted({i for (i, _), s in self.by_id.items() if s.kind in kinds})
                raise self.inputs.fail(
                    index,
                    f"uses: {text!r} names no earlier {', '.join(kinds[:-1])} or {kinds[-1]} step"
                    f"{suggest(name, known)}",
                    "uses",
                )
            found += steps
        return list({s.hash: s for s in found}.values())

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
