"""One experiment file, read and written."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, field_validator, model_validator

from rlaif.config.arms import AI, HUMAN, LABELLERS, MAIN, Arms, ArmSpec, labellers_of
from rlaif.config.base import Count, Fraction, Seed, StepId, Strict, told
from rlaif.config.dataset import DatasetSpec
from rlaif.config.models import RESERVED_MODELS, ModelSpec
from rlaif.config.on_policy import RolloutTrain
from rlaif.config.prompts import PromptSetSpec, PromptsSpec
from rlaif.config.steps import LoadStep
from rlaif.core.yamlio import Loc, fault_at, suggest
from rlaif.judges.build import JudgeStep
from rlaif.judges.common import JudgeBase
from rlaif.metrics.figure_rules import RULES, find_key
from rlaif.pipeline.stages import Stage, StepEntry


def is_metric(name: str) -> bool:
    """Whether a metric of held-out answers may be called so."""
    key = find_key(name)
    return key is not None and RULES[key].primary and not name.endswith("/")


class AlarmsConfig(Strict):
    """Limits of the per-round alarms; see docs/diagnostics.md."""

    kl_budget: PositiveFloat = 30.0
    length_low: PositiveFloat = 0.5
    length_high: PositiveFloat = 2.0
    distinct_drop: Fraction = 0.15
    repetition_rise: Fraction = 0.1
    empty_rate: Fraction = 0.05
    refusal_rise: Fraction = 0.1
    not_applicable_rise: Fraction = 0.1
    unparsed_rate: Fraction = 0.3
    zero_variance: Fraction = 0.9
    saturation_mean: Fraction = 0.97
    saturation_spread: Fraction = 0.02
    gap_decline: PositiveFloat = 3.0
    position_bias: Fraction = 0.5
    label_mass: Fraction = 0.5
    drift_half_widths: PositiveFloat = 2.0
    on_alarm: Literal["continue", "stop"] = "continue"


class Retention(Strict):
    """What is kept in `models/`. fp32 masters are needed by the next round only."""

    masters: Literal["last", "all"] = "last"


class Experiment(Strict):
    """One experiment file."""

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    seed: Seed = 0
    seeds: list[Seed] | None = None
    models: dict[str, ModelSpec]
    constitution: str | None = None
    data: str | None = Field(
        None, description="The default file of `load` steps: `--set data=PATH`."
    )
    prompts: PromptsSpec
    prompt_sets: dict[StepId, PromptSetSpec] = Field(
        {}, description="Further sets of prompts by name; `prompts` is the set `main`."
    )
    arms: Arms = Field(
        {}, description="The policies of the experiment, by what differs between them."
    )
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        {}, description="A path and its values: an arm for each; of several paths, for the grid."
    )
    judges: list[JudgeStep] = Field([], description="Judges used only for rewards and evaluation.")
    primary: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="The metrics that the experiment is about: a change of one is claimed by "
        "Holm's procedure over all of them, and all others are exploratory. Default: the score and "
        "the win rate of the judges whose verdicts a policy is trained on.",
    )
    margin: Annotated[float, Field(gt=0, le=1)] = Field(
        0.05,
        description="With `arms`: a difference of scores, or of accuracies on held-out pairs, that "
        "is too small to matter. Policies whose 90% interval lies within it are called the same.",
    )
    profiles: dict[StepId, dict[str, Any]] = Field(
        {},
        description="Other sizes of the same method, chosen by `--profile NAME`: paths and their "
        "values, such as `steps.sample.prompts: 1000`. The file without a profile is the small "
        "size.",
    )
    stages: Annotated[list[Stage], Field(min_length=1)] | None = Field(
        None, description="Lists of steps, one after the other. Or `rounds` and `steps`: one stage."
    )
    rounds: Count = 1
    steps: Annotated[list[StepEntry], Field(min_length=1)] = Field(
        [], description="The steps of the one stage."
    )
    dataset: DatasetSpec | None = Field(
        None, description="Write the preferences as a dataset after the last step."
    )
    alarms: AlarmsConfig = AlarmsConfig()
    retention: Retention = Retention()
    budget: PositiveFloat | None = Field(
        None, description="Stop when the calls of this run folder have cost this much."
    )
    allow_same_weights: bool = Field(
        False, description="Allow labeller, proxy and gold judge to share weights."
    )
    allow_code: bool = Field(
        False,
        description="Allow the rule `code_tests` to run the code of answers, on this machine and "
        "as this user.",
    )

    @field_validator("models")
    @classmethod
    def _has_policy(cls, models: dict[str, ModelSpec]) -> dict[str, ModelSpec]:
        if "policy" not in models:
            raise ValueError("`models` must name a `policy`")
        taken = sorted((RESERVED_MODELS - {"policy"}) & set(models))
        if taken:
            raise fault_at(
                (taken[0],), f"{taken[0]!r} is a reserved name: call the model something else"
            )
        return models

    @model_validator(mode="after")
    def _stages_or_steps(self) -> Experiment:
        if self.stages is None:
            if not self.steps:
                raise ValueError("give `steps`, or `stages` with steps")
            # Its own checks are those of every stage.
            self.all_stages[0].check_rounds()
            return self
        if told(self, "steps", "rounds"):
            raise fault_at(("steps",), "give `stages`, or `rounds` and `steps`, not both")
        ids = [stage.id for stage in self.stages]
        for number, name in enumerate(ids):
            if name in ids[:number]:
                raise fault_at(
                    ("stages", number, "id"), f"stage ids must differ; {name!r} is used twice"
                )
        return self

    @model_validator(mode="after")
    def _seeds_once(self) -> Experiment:
        if self.seeds is not None and "seed" in self.model_fields_set:
            raise fault_at(("seeds",), "give `seed` or `seeds`, not both")
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            raise fault_at(("seeds",), "`seeds` must be a list of different numbers")
        return self

    @model_validator(mode="after")
    def _ids_differ(self) -> Experiment:
        defined = {judge.id: judge for judge in self.judges}
        ids: set[str] = set()
        run: set[tuple[str, str]] = set()
        for index, judge in enumerate(self.judges):
            if judge.id in ids:
                fault = f"judge ids must differ; {judge.id!r} is used twice (set `id:`)"
                raise fault_at(("judges", index), fault)
            ids.add(judge.id)
        places = iter(self.step_locs)
        for stage in self.all_stages:
            for entry in stage.steps:
                name, place = entry.step.id, next(places)
                # A step may run a judge that `judges` defines, in each stage, on what it names.
                known = defined.get(name)
                is_run = (
                    entry.kind == "judge"
                    and known is not None
                    and (stage.id, name) not in run
                    and entry.step.model_copy(update={"uses": known.uses}) == known
                )
                if is_run:
                    run.add((stage.id, name))
                elif name in ids:
                    fault = f"step ids must differ; {name!r} is used twice (set `id:`)"
                    raise fault_at((*place, entry.kind), fault)
                ids.add(name)
                if entry.makes_model and name in {*self.models, *RESERVED_MODELS}:
                    raise fault_at(
                        (*place, entry.kind),
                        f"{name!r} is the name of a model and the id of a step that makes one: "
                        "call one of the two something else",
                    )
        return self

    @model_validator(mode="after")
    def _names_known(self) -> Experiment:
        """Sets of prompts and arms, wherever they are named."""
        if MAIN in self.prompt_sets:
            raise fault_at(("prompt_sets", MAIN), "`main` is the set that `prompts` describes")
        for place, entry in zip(self.step_locs, self.entries, strict=True):
            if entry.makes_set and entry.step.id in {*self.prompt_sets, MAIN}:
                raise fault_at(
                    (*place, entry.kind), f"a set of prompts has the name {entry.step.id!r} already"
                )
        sets: list[tuple[Loc, str]] = []
        arms: list[tuple[Loc, str]] = []
        for number, stage in enumerate(self.all_stages):
            sets.append((("stages", number, "prompts"), stage.prompts))
            arms += [(("stages", number, "arms"), name) for name in stage.arms or ()]
        for place, entry in zip(self.step_locs, self.entries, strict=True):
            arms += [((*place, "arms"), name) for name in entry.arms or ()]
            sets += [((*place, entry.kind, "prompts"), name) for name in _sets_of(entry)]
        for place, name in sets:
            if name not in self.set_specs:
                hint = suggest(name, sorted(self.set_specs))
                raise fault_at(place, f"{name!r} is no set of prompts{hint}")
        for place, entry in zip(self.step_locs, self.entries, strict=True):
            for name in (entry.evaluate.prompts or ()) if entry.evaluate else ():
                if not self.set_specs[name].holdout:
                    raise fault_at(
                        (*place, "evaluate", "prompts"),
                        f"no prompt of the set {name!r} is held out; set its `holdout`",
                    )
        known = {MAIN} if not self.arms and not self.sweep else {*self.arms}
        for place, name in arms:
            # What a sweep calls its arms is known once it is spread out.
            if name not in known and not self.sweep:
                raise fault_at(place, f"{name!r} is no arm{suggest(name, sorted(known))}")
        return self

    @model_validator(mode="after")
    def _gpus_apart(self) -> Experiment:
        """Each vLLM takes most of a GPU's memory, unless it is told how much."""
        shares: dict[int, dict[str, float]] = {}
        for name, spec in self.models.items():
            share = spec.engine_args.get("gpu_memory_utilization")
            for gpu in spec.gpus or []:
                shares.setdefault(gpu, {})[name] = share if isinstance(share, float) else 1.0
        for gpu, taken in sorted(shares.items()):
            if len(taken) > 1 and sum(taken.values()) > 1:
                raise fault_at(
                    ("models", list(taken)[-1], "gpus"),
                    f"GPU {gpu} is among the `gpus` of {' and '.join(map(repr, taken))}: give them "
                    "different ones, or each a `gpu_memory_utilization` in `engine_args`, with a "
                    "sum of at most 1",
                )
        return self

    @model_validator(mode="after")
    def _budget_counts(self) -> Experiment:
        if self.budget is None:
            return self
        remote = {name: spec for name, spec in self.models.items() if spec.base_url is not None}
        if not remote:
            raise fault_at(("budget",), "`budget` has no effect: no model has a `base_url`")
        unpriced = sorted(name for name, spec in remote.items() if spec.price is None)
        if unpriced:
            raise fault_at(
                ("budget",),
                f"`budget` needs the `price` of every remote model; {unpriced} have none",
            )
        return self

    @model_validator(mode="after")
    def _files_named(self) -> Experiment:
        for place, entry in zip(self.step_locs, self.entries, strict=True):
            if entry.load is not None and self.loaded_name(entry.load) is None:
                raise fault_at(
                    (*place, "load"),
                    f"load {entry.load.id!r} names no file: give it `path`, or the experiment "
                    "`data` (from the command line: --set data=PATH)",
                )
        if self.prompts.from_pairs and not self.pair_loads:
            raise fault_at(
                ("prompts",),
                "`prompts` needs a `path` or a `dataset`; without them the prompts are those of "
                "loaded pairs, and no step is `load: {type: pairs}`",
            )
        return self

    @model_validator(mode="after")
    def _arms_can_label(self) -> Experiment:
        labels = [entry.label for entry in self.entries if entry.label is not None]
        pairs = [e.load for e in self.entries if e.load is not None and e.load.type == "pairs"]
        places = [
            (*place, "label")
            for place, entry in zip(self.step_locs, self.entries, strict=True)
            if entry.label is not None
        ]
        if labels and not pairs:
            raise fault_at(
                places[0],
                "a `label` step labels loaded pairs, and none are loaded: put "
                "`- load: {type: pairs, path: FILE}` before it",
            )
        given = [e.load.id for e in self.entries if e.load and e.load.type == "judgements"]
        taken = sorted(LABELLERS & {*self.all_judges(), *given}) if labels else []
        if taken:
            raise fault_at(
                self.loc_of(taken[0]),
                f"`labels: {taken[0]}` has a meaning of its own: call {taken[0]!r} something else",
            )
        if not any(arm.labelled for arm in self.arms.values()):
            return self
        if not pairs:
            raise fault_at(
                ("arms",),
                "`arms` compare labels of the same answers, and no pairs are loaded: put "
                "`- load: {type: pairs, path: FILE}` and `- label:` before `train`",
            )
        if len(labels) != 1:
            raise fault_at(("arms",), f"`arms` need one `label` step, and there are {len(labels)}")
        said = all(arm.labels is not None for arm in self.arms.values())
        if said and {"labels", "flip"} & labels[0].model_fields_set:
            raise fault_at(
                places[0], "the arms say who labels: leave `labels` and `flip` out of `label`"
            )
        return self

    @model_validator(mode="after")
    def _one_dataset(self) -> Experiment:
        if self.dataset is None:
            return self
        kinds = ("pair", "label", "filter", "load")
        makers = [entry.step.id for entry in self.entries if entry.kind in kinds]
        if not makers:
            raise fault_at(
                ("dataset",), "`dataset` needs preferences, and no step makes any: add `pair`"
            )
        if self.dataset.uses is not None and self.dataset.uses not in makers:
            raise fault_at(("dataset", "uses"), f"{self.dataset.uses!r} is none of {makers}")
        judges = sorted(e.judge.id for e in self.entries if e.judge is not None)
        if self.dataset.overall is not None and self.dataset.overall not in judges:
            raise fault_at(
                ("dataset", "overall"), f"{self.dataset.overall!r} is no judge of {judges}"
            )
        return self

    @model_validator(mode="after")
    def _primary_known(self) -> Experiment:
        for number, name in enumerate(self.primary or []):
            head, _, rest = name.partition("/")
            known = {"score": 1, "win_rate": 1, "win_rate_vs_initial": 1}
            if head in known and rest.split("/")[0] not in self.all_judges():
                judges = ", ".join(self.all_judges()) or "none"
                raise fault_at(("primary", number), f"{name!r} is of no judge (judges: {judges})")
            if not is_metric(name):
                raise fault_at(
                    ("primary", number),
                    f"{name!r} is no metric of held-out answers, such as score/JUDGE, "
                    "win_rate/JUDGE, reward_accuracy/human or check/ID",
                )
        return self

    def loc_of(self, name: str) -> Loc:
        """Where the judge or step of that id stands in the file."""
        for index, judge in enumerate(self.judges):
            if judge.id == name:
                return ("judges", index)
        return next(
            place
            for place, entry in zip(self.step_locs, self.entries, strict=True)
            if entry.step.id == name
        )

    @property
    def all_stages(self) -> list[Stage]:
        """The stages; `rounds` and `steps` are the one stage `main`."""
        if self.stages is not None:
            return self.stages
        return [Stage.model_construct(id=MAIN, rounds=self.rounds, steps=self.steps)]

    @property
    def entries(self) -> list[StepEntry]:
        """The steps of all stages, in the order of the file."""
        return [entry for stage in self.all_stages for entry in stage.steps]

    @property
    def step_locs(self) -> list[Loc]:
        """Where each of `entries` stands in the file."""
        if self.stages is None:
            return [("steps", index) for index in range(len(self.steps))]
        places = [(n, i) for n, stage in enumerate(self.stages) for i in range(len(stage.steps))]
        return [("stages", number, "steps", index) for number, index in places]

    @property
    def set_specs(self) -> dict[str, PromptsSpec]:
        """Every set of prompts by name; that of `prompts` is `main`. Pairs with prompts of their
        own and questions have no source here."""
        loaded = [e.load for e in self.entries if e.load is not None and e.load.makes_set]
        posed = {
            e.step.id: PromptSetSpec.model_construct(path=None, dataset=None, holdout=0)
            for e in self.entries
            if e.kind == "questions"
        }
        return {MAIN: self.prompts, **self.prompt_sets, **posed} | {
            load.id: PromptSetSpec.model_construct(
                path=self.loaded_name(load) if load.dataset is None else None,
                dataset=load.dataset,
                dataset_split=load.dataset_split,
                holdout=load.holdout,
            )
            for load in loaded
        }

    @property
    def made_models(self) -> list[str]:
        """The ids of the steps that make models."""
        return [entry.step.id for entry in self.entries if entry.makes_model]

    def labellers(self, arm: ArmSpec) -> list[str]:
        """The ids of the judges that label an arm's pairs; none where people or a coin do."""
        labels = labellers_of(arm.labels or self.own_labels)
        named = [name for name in labels if name in self.all_judges()]
        if AI not in labels:
            return named
        steps = [e.judge.id for e in self.entries if e.judge is not None]
        weights = next((e.label.weights for e in self.entries if e.label is not None), None)
        counted = [j for j in steps if weights is None or weights.get(j, 0.0) > 0]
        return list(dict.fromkeys([*named, *counted]))

    @property
    def own_labels(self) -> str | dict[str, float]:
        """Who labels in arms that do not say."""
        return next((e.label.labels for e in self.entries if e.label is not None), HUMAN)

    @property
    def trained_judges(self) -> list[str]:
        """The judges whose verdicts a policy is trained on: those of judge steps, and rewards."""
        steps = [e.judge.id for e in self.entries if e.judge is not None]
        rewards = [
            judge
            for e in self.entries
            if e.train is not None
            for judge in getattr(e.train, "learned_judges", ())
        ]
        return list(dict.fromkeys([*steps, *rewards]))

    @property
    def pair_loads(self) -> list[LoadStep]:
        """The steps that load labelled pairs of the set `main`."""
        loads = [e.load for e in self.entries if e.load is not None and e.load.type == "pairs"]
        return [load for load in loads if load.prompts != "own"]

    def loaded_name(self, step: LoadStep) -> str | None:
        """The file or dataset that a load step reads, by a name that no other has."""
        if step.dataset is not None:
            return f"{step.dataset} ({step.dataset_config or 'default'}, {step.dataset_split})"
        return step.path if step.path is not None else self.data

    @property
    def arm_names(self) -> list[str]:
        """The arms in their order; "main" where there are none."""
        return list(self.arms) or [MAIN]

    @property
    def all_seeds(self) -> list[int]:
        """`seeds`, or the one `seed`."""
        return self.seeds if self.seeds is not None else [self.seed]

    def all_judges(self) -> dict[str, JudgeBase]:
        """`judges` and the judge steps by id, in order."""
        steps = [e.judge for e in self.entries if e.judge is not None]
        return {judge.id: judge for judge in [*self.judges, *steps]}


def _sets_of(entry: StepEntry) -> list[str]:
    """The sets of prompts that a step names."""
    if entry.sample is not None:
        return [] if entry.sample.prompt_set is None else [entry.sample.prompt_set]
    if isinstance(entry.train, RolloutTrain):
        return entry.train.prompts or []
    if entry.arena is not None:
        return [] if entry.arena.prompts == MAIN else [entry.arena.prompts]
    return (entry.evaluate.prompts or []) if entry.evaluate is not None else []
