"""The experiment file: what every key means, its default, and how a file becomes a config.

Everything here is validation. Unknown keys are refused with the nearest known one; nothing is read
but the YAML itself. `description` fields never enter a hash.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from rlaif.errors import ConfigError
from rlaif.rules import validate_check
from rlaif.yamlio import Lines, load_yaml, validate

RESERVED_MODELS = frozenset({"policy", "initial", "previous", "current"})
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
StepId = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
PluginName = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]


class Strict(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ModelSpec(Strict):
    """One model, named once. `path` is builtin/NAME, a local folder, or a hub id."""

    path: str
    engine: Literal["hf", "fake"] | PluginName = "hf"
    role: Literal["policy", "labeller", "proxy", "gold"] | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="auto: bfloat16 where the device multiplies it fast, else float32."
    )
    device: str = "auto"
    batch_tokens: PositiveInt = Field(
        8192, description="Tokens (prompt width + new, times rows) in one engine batch."
    )
    max_context: PositiveInt | None = Field(
        None, description="Longest prompt plus answer; the model's own limit when absent."
    )
    system_prompt: str = Field(
        "keep",
        description="keep: what the chat template inserts; drop: none; anything else: that text.",
    )
    script: str | None = Field(None, description="For engine fake: a YAML file of answers.")


class Columns(Strict):
    """Which column of a dataset holds what. Give `prompt` (text) or `messages`."""

    prompt: str | None = None
    messages: str | None = None
    tags: str | None = None
    reference: str | None = None
    split: str | None = None


class PromptsSpec(Strict):
    """The instructions. `path` is JSONL or Parquet; `dataset` any `datasets` dataset."""

    path: str | None = None
    dataset: str | None = None
    dataset_split: str = "train"
    columns: Columns = Columns()
    holdout: PositiveInt = Field(64, description="Prompts kept for evaluation, never trained on.")
    limit: PositiveInt | None = Field(None, description="Use at most this many training prompts.")

    @model_validator(mode="after")
    def _one_source(self) -> PromptsSpec:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of `path` and `dataset`")
        return self


class SamplingKeys(Strict):
    """Keys that every step that samples shares. `temperature` 0 is greedy."""

    temperature: NonNegativeFloat = 0.8
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: NonNegativeInt = 0
    max_new_tokens: PositiveInt = 64
    stop: list[str] = []


class SampleStep(SamplingKeys):
    """Sample `n` completions of each training prompt."""

    id: StepId = "sample"
    n: Annotated[int, Field(ge=1)] = 4
    by: str = "policy"
    prompts: PositiveInt | None = Field(
        None, description="Training prompts used this round, drawn by seed; all when absent."
    )


class LoadStep(Strict):
    """Bring in records from a file: TRL preference rows, or completions or judgements of a run."""

    id: StepId = "load"
    type: Literal["preferences", "completions", "judgements"]
    path: str


class JudgeBase(Strict):
    """Keys that every judge has. `principles` limits it to some of the constitution's."""

    id: StepId
    principles: list[str] | None = None
    uses: list[str] | None = None


class ModelJudge(JudgeBase):
    """Keys of every judge that asks a model. `by` names the model; `template` a prompt file."""

    by: str = "policy"
    template: str | None = None


class RulesJudge(JudgeBase):
    """The constitution's `check`s, run as programs."""

    kind: Literal["rules"]
    id: StepId = "rules"


class YesNoJudge(ModelJudge):
    """Pointwise: P(yes) against P(no) at the next token, one call per text principle."""

    kind: Literal["yes_no"]
    id: StepId = "yes_no"
    yes_labels: list[str] = ["Yes", " Yes", "yes", " yes"]
    no_labels: list[str] = ["No", " No", "no", " no"]


class GeneratedJudge(ModelJudge):
    """Keys of judges that write text. `samples` judgements are taken and averaged."""

    samples: PositiveInt = 1
    temperature: NonNegativeFloat = 0.0
    max_new_tokens: PositiveInt = 128

    @model_validator(mode="after")
    def _samples_differ(self) -> GeneratedJudge:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples > 1 needs temperature > 0: greedy samples are all the same")
        return self


class RatingJudge(GeneratedJudge):
    """Pointwise rating on a described scale; `expected` reads the label log-probs instead."""

    kind: Literal["rating"]
    id: StepId = "rating"
    scale: tuple[int, int] = (1, 5)
    expected: bool = False

    @model_validator(mode="after")
    def _scale_rises(self) -> RatingJudge:
        if not 0 <= self.scale[0] < self.scale[1]:
            raise ValueError("scale must be [low, high] with 0 <= low < high")
        return self


class AdditiveJudge(GeneratedJudge):
    """Self-rewarding additive 0-5 score (METHODS: 2401.10020); several samples are averaged."""

    kind: Literal["additive"]
    id: StepId = "additive"
    samples: PositiveInt = 3
    temperature: NonNegativeFloat = 0.7
    max_new_tokens: PositiveInt = 200
    expected: bool = False


class PairwiseJudge(ModelJudge):
    """Which of two answers is better, by label log-probs, in both orders by default."""

    kind: Literal["pairwise"]
    id: StepId = "pairwise"
    order: Literal["both", "random", "fixed"] = "both"
    first_labels: list[str] = ["1", " 1"]
    second_labels: list[str] = ["2", " 2"]


class ParseSpec(Strict):
    """How a template judge's answer is read: a pattern's last match, a JSON schema, or labels."""

    pattern: str | None = Field(None, description="A regular expression with one group.")
    json_schema: dict[str, Any] | None = None
    field: str = Field("score", description="The key of the JSON answer that holds the value.")
    values: dict[str, float] | None = Field(
        None, description="What each matched word is worth; a number is read when absent."
    )

    @model_validator(mode="after")
    def _one_way(self) -> ParseSpec:
        if (self.pattern is None) == (self.json_schema is None):
            raise ValueError("give exactly one of `pattern` and `json_schema`")
        return self


class TemplateJudge(GeneratedJudge):
    """A judge of one's own: a template file, a way to read the answer, and a scale."""

    kind: Literal["template"]
    id: StepId = "template"
    template: str
    parse: ParseSpec
    scale: tuple[float, float] = (0.0, 1.0)
    per_principle: bool = Field(
        False, description="One call per text principle instead of one for all."
    )

    @model_validator(mode="after")
    def _scale_rises(self) -> TemplateJudge:
        if not self.scale[0] < self.scale[1]:
            raise ValueError("scale must be [low, high] with low < high")
        return self


class CustomJudge(ModelJudge):
    """A judge class of one's own, `kind: package.module:Name`, built with `options`."""

    kind: PluginName
    id: StepId = "custom"
    options: dict[str, Any] = {}


def _judge_tag(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "custom" if isinstance(kind, str) and ":" in kind else str(kind)


JudgeStep = Annotated[
    Annotated[RulesJudge, Tag("rules")]
    | Annotated[YesNoJudge, Tag("yes_no")]
    | Annotated[RatingJudge, Tag("rating")]
    | Annotated[AdditiveJudge, Tag("additive")]
    | Annotated[PairwiseJudge, Tag("pairwise")]
    | Annotated[TemplateJudge, Tag("template")]
    | Annotated[CustomJudge, Tag("custom")],
    Discriminator(
        _judge_tag,
        custom_error_type="unknown_kind",
        custom_error_message="`kind` must be rules, yes_no, rating, additive, pairwise, template, "
        "or package.module:Name",
    ),
]


class PairStep(Strict):
    """Make preferences from judgements. `min_margin` is on the combined [0, 1] scale."""

    id: StepId = "pair"
    strategy: Literal["best_vs_worst", "best_vs_random", "margin", "all"] = "best_vs_worst"
    weights: dict[str, NonNegativeFloat] | None = Field(
        None, description="Weight of each judge by id; equal weights when absent."
    )
    min_margin: Fraction = 0.0
    missing: Literal["drop", "renormalise"] = "drop"
    standardise: Literal["initial"] | None = None
    max_pairs: PositiveInt | None = Field(None, description="Keep the widest margins, at most.")
    uses: list[str] | None = None


class LoraOptions(Strict):
    """Low-rank adapters through peft; merged into the exported weights."""

    r: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Fraction = 0.0
    target_modules: str | list[str] = "all-linear"


class TrainStep(Strict):
    """Train the policy. Batch sizes count pairs (dpo) or examples (sft)."""

    id: StepId = "train"
    method: Literal["dpo", "sft"] = "dpo"
    from_: str = Field("current", alias="from")
    reference: str = "current"
    beta: PositiveFloat = 0.1
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    nll_weight: NonNegativeFloat = 0.0
    learning_rate: PositiveFloat = 1e-6
    epochs: PositiveInt = 1
    batch_size: PositiveInt = 16
    micro_batch_size: PositiveInt = 4
    max_length: PositiveInt = 1024
    overlong: Literal["skip", "refuse", "truncate_left"] = "skip"
    warmup_ratio: Fraction = 0.1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    min_lr_ratio: Fraction = 0.0
    weight_decay: NonNegativeFloat = 0.0
    adam_betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    max_grad_norm: PositiveFloat = 1.0
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto: bf16 autocast where the device multiplies it fast, else fp32."
    )
    gradient_checkpointing: bool = False
    train_on_eos: bool = True
    lora: LoraOptions | None = None
    checkpoint_every: PositiveInt = Field(50, description="Optimiser steps between checkpoints.")
    uses: list[str] | None = None

    @model_validator(mode="after")
    def _batches_fit(self) -> TrainStep:
        if self.batch_size % self.micro_batch_size:
            raise ValueError("batch_size must be a multiple of micro_batch_size")
        return self


class CheckSpec(Strict):
    """A rule to watch on held-out answers that no judge trains on."""

    id: StepId
    rule: str
    params: dict[str, Any] = {}

    @model_validator(mode="after")
    def _known(self) -> CheckSpec:
        validate_check(self.rule, self.params)
        return self


class EvaluateStep(Strict):
    """Sample held-out prompts from the new policy and compare with other models."""

    id: StepId = "evaluate"
    against: list[Literal["initial", "previous"]] = ["initial", "previous"]
    n: PositiveInt = 1
    temperature: NonNegativeFloat | None = None
    max_new_tokens: PositiveInt | None = None
    judges: list[str] | None = Field(None, description="Judge ids; every judge when absent.")
    checks: list[CheckSpec] = []
    resamples: PositiveInt = 2000


class AlarmsConfig(Strict):
    """Limits of the per-round alarms; see docs/diagnostics.md."""

    kl_budget: PositiveFloat = 30.0
    length_low: PositiveFloat = 0.5
    length_high: PositiveFloat = 2.0
    distinct_drop: Fraction = 0.15
    repetition_rise: Fraction = 0.1
    empty_rate: Fraction = 0.05
    refusal_rise: Fraction = 0.1
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


class StepEntry(Strict):
    """One item of `steps`: exactly one of its keys is set."""

    sample: SampleStep | None = None
    load: LoadStep | None = None
    judge: JudgeStep | None = None
    pair: PairStep | None = None
    train: TrainStep | None = None
    evaluate: EvaluateStep | None = None

    @model_validator(mode="before")
    @classmethod
    def _empty_means_defaults(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: {} if item is None else item for key, item in value.items()}
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> StepEntry:
        if len(self.model_fields_set) != 1:
            raise ValueError("each step is one key: sample, load, judge, pair, train or evaluate")
        return self

    @property
    def kind(self) -> str:
        """sample, load, judge, pair, train or evaluate."""
        return next(iter(self.model_fields_set))

    @property
    def step(self) -> AnyStep:
        """The step itself."""
        return getattr(self, self.kind)  # type: ignore[no-any-return]


AnyJudge = (
    RulesJudge
    | YesNoJudge
    | RatingJudge
    | AdditiveJudge
    | PairwiseJudge
    | TemplateJudge
    | CustomJudge
)
AnyStep = SampleStep | LoadStep | AnyJudge | PairStep | TrainStep | EvaluateStep


class Experiment(Strict):
    """One experiment file."""

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    seed: int = 0
    seeds: list[int] | None = None
    models: dict[str, ModelSpec]
    constitution: str | None = None
    prompts: PromptsSpec
    rounds: PositiveInt = 1
    steps: Annotated[list[StepEntry], Field(min_length=1)]
    alarms: AlarmsConfig = AlarmsConfig()
    retention: Retention = Retention()
    allow_same_weights: bool = Field(
        False, description="Let labeller, proxy and gold judge be the same weights."
    )

    @field_validator("models")
    @classmethod
    def _has_policy(cls, models: dict[str, ModelSpec]) -> dict[str, ModelSpec]:
        if "policy" not in models:
            raise ValueError("`models` must name a `policy`")
        taken = sorted((RESERVED_MODELS - {"policy"}) & set(models))
        if taken:
            raise ValueError(f"{taken} are reserved names (initial, previous, current)")
        return models

    @model_validator(mode="after")
    def _seeds_once(self) -> Experiment:
        if self.seeds is not None and "seed" in self.model_fields_set:
            raise ValueError("give `seed` or `seeds`, not both")
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            raise ValueError("`seeds` must be a list of different numbers")
        ids = [entry.step.id for entry in self.steps]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"step ids must differ; {twice} is used twice (set `id:`)")
        return self

    @property
    def all_seeds(self) -> list[int]:
        """`seeds`, or the one `seed`."""
        return self.seeds if self.seeds is not None else [self.seed]

    def judges(self) -> dict[str, AnyJudge]:
        """The judge steps by id, in order."""
        return {e.judge.id: e.judge for e in self.steps if e.judge is not None}


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> tuple[Experiment, Lines]:
    """The experiment in `path` with `a.b=c` overrides applied. Raises ConfigError."""
    data, lines = load_yaml(path)
    for override in overrides:
        apply_override(data, override)
    return validate(Experiment, data, lines, path), lines


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one dotted key in place. The value is read as YAML.

    A step is addressed by position, kind or id: `steps.train.beta=0.2`, `steps.self.by=initial`.
    """
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"--set {override}: expected KEY=VALUE, such as steps.train.beta=0.2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from None
    if isinstance(value, str):
        value = _number(value)
    *parents, last = key.strip().split(".")
    node: Any = data
    for part in parents:
        node = _descend(node, part, override)
    if isinstance(node, dict):
        node[last] = value
    elif isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    else:
        raise ConfigError(f"--set {override}: nothing can be set at {key!r}")


def _number(text: str) -> str | float:
    """YAML 1.1 reads 1e-5 as text; a user means the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _descend(node: Any, part: str, override: str) -> Any:
    if isinstance(node, dict):
        if node.get(part) is None:
            node[part] = {}
        return node[part]
    if isinstance(node, list):
        if part.isdigit() and int(part) < len(node):
            return node[int(part)]
        found = [item for item in node if _is_called(item, part)]
        if len(found) == 1:
            (kind,) = found[0]
            if found[0][kind] is None:
                found[0][kind] = {}
            return found[0][kind]
        count = "no step is" if not found else f"{len(found)} steps are"
        raise ConfigError(f"--set {override}: {count} called {part!r}; use its position or id")
    raise ConfigError(f"--set {override}: {part!r} is not inside a mapping or a list")


def _is_called(item: Any, name: str) -> bool:
    if not isinstance(item, dict) or len(item) != 1:
        return False
    ((kind, body),) = item.items()
    return kind == name or (isinstance(body, dict) and body.get("id") == name)


def resolved_yaml(experiment: Experiment) -> str:
    """The experiment with every default written out, as it is kept in the run folder."""
    data = experiment.model_dump(mode="json", by_alias=True)
    data["steps"] = [
        {e.kind: e.step.model_dump(mode="json", by_alias=True)} for e in experiment.steps
    ]
    data = {key: value for key, value in data.items() if key != "seeds" or value is not None}
    if "seeds" in data:
        data.pop("seed", None)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def experiment_schema() -> str:
    """The JSON schema of an experiment file, for editors."""
    schema = Experiment.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2)
