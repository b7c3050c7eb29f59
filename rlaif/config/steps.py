"""Steps other than judge and train, and the list of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from rlaif.config.arms import HUMAN, Labels
from rlaif.config.base import (
    LATE,
    ONE_OR_MORE,
    Count,
    Fraction,
    StepId,
    Strict,
    Temperature,
    hashed_keys,
    told,
)
from rlaif.config.columns import LabelColumns
from rlaif.config.engagement import EngagementSpec
from rlaif.config.models import INITIAL, POLICY, RESERVED_MODELS, check_template_variables
from rlaif.constitution.rules import validate_check


class SamplingKeys(Strict):
    """Keys that every step that samples shares. `temperature` 0 is greedy."""

    temperature: Temperature = 0.8
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: NonNegativeInt = 0
    max_new_tokens: PositiveInt = 64
    stop: list[str] = []


class SamplePrinciples(Strict):
    """Principles that answers are written under, one drawn for each completion.

    `texts` has the system prompts of each principle; `shares`, by the source or a tag of the
    prompt, how often each principle is drawn, and `default` those of all other prompts.
    """

    texts: dict[str, Annotated[list[str], Field(min_length=1)]]
    default: dict[str, PositiveFloat] = Field({}, description="Default: equal shares.")
    shares: dict[str, Annotated[dict[str, PositiveFloat], Field(min_length=1)]] = {}

    @model_validator(mode="after")
    def _check_shares(self) -> SamplePrinciples:
        if not self.texts:
            raise ValueError("`texts` needs at least one principle")
        for shares in (self.default, *self.shares.values()):
            unknown = sorted(set(shares) - set(self.texts))
            if unknown:
                raise ValueError(f"a share is given to {unknown[0]!r}, which has no texts")
        return self

    @property
    def default_shares(self) -> dict[str, float]:
        """The shares of prompts whose source and tags have none."""
        return self.default or dict.fromkeys(self.texts, 1.0)


class TemplateFile(Strict):
    """A text that is rendered from a file when the experiment is planned."""

    template: Annotated[str, Field(min_length=1)] = Field(
        description="A Jinja2 file that may use the constitution."
    )


SystemPrompt = Annotated[str, Field(min_length=1)] | TemplateFile


class PoolMember(Strict):
    """One generator: a model, how it samples (the step's keys where absent), and its own system
    prompt."""

    by: str = "policy"
    system_prompt: SystemPrompt | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    top_k: NonNegativeInt | None = None
    max_new_tokens: PositiveInt | None = None


class PromptsOf(Strict):
    """Some prompts of a set."""

    set: StepId
    count: PositiveInt | None = Field(None, description="Prompts used per round; default: all.")


class SampleStep(SamplingKeys):
    """Sample `n` completions of each training prompt, from one model or from `n` different
    members of a pool."""

    id: StepId = "sample"
    n: Count = 4
    by: str = "policy"
    prompts: PositiveInt | StepId | PromptsOf | None = Field(
        None,
        description="Training prompts used per round, drawn by seed; default: all. Or the name of a"
        " set of `prompt_sets`, or both as {set, count}.",
    )
    pool: Annotated[list[PoolMember], Field(min_length=2)] | None = Field(
        None, description="Generators, of which `n` are drawn for each prompt."
    )
    principles: Annotated[SamplePrinciples | None, LATE] = None
    system_prompt: Annotated[SystemPrompt | None, LATE] = Field(
        None,
        description="Added before each prompt; the judges do not see it. A text, or {template: "
        "FILE}.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> SampleStep:
        if self.pool is None:
            return self
        if self.n > len(self.pool):
            raise ValueError(f"n: {self.n} answers of a pool of {len(self.pool)}")
        if told(self, "by", "system_prompt"):
            raise ValueError("each member of `pool` has its own `by` and `system_prompt`")
        return self

    @property
    def prompt_set(self) -> str | None:
        """The set that it names; None for that of its stage."""
        if isinstance(self.prompts, PromptsOf):
            return self.prompts.set
        return self.prompts if isinstance(self.prompts, str) else None

    @property
    def prompt_count(self) -> int | None:
        """How many prompts it takes per round; None for all."""
        if isinstance(self.prompts, PromptsOf):
            return self.prompts.count
        return self.prompts if isinstance(self.prompts, int) else None

    @property
    def templates(self) -> list[str]:
        """The template files of its system prompts."""
        told = [self.system_prompt, *(member.system_prompt for member in self.pool or ())]
        return [text.template for text in told if isinstance(text, TemplateFile)]

    @property
    def told(self) -> str | None:
        """The system prompt of a step that is planned, whose templates are rendered."""
        assert not isinstance(self.system_prompt, TemplateFile), "planned steps have texts"
        return self.system_prompt

    def with_texts(self, texts: Mapping[str, str]) -> SampleStep:
        """The step with the text of each template file in its place."""

        def written(told: str | TemplateFile | None) -> str | None:
            return texts[told.template] if isinstance(told, TemplateFile) else told

        if not self.templates:
            return self
        pool = self.pool and [
            member.model_copy(update={"system_prompt": written(member.system_prompt)})
            for member in self.pool
        ]
        update = {"system_prompt": written(self.system_prompt), "pool": pool}
        return self.model_copy(update=update)

    def members(self) -> list[SampleStep]:
        """The step of each member of the pool: one answer to a prompt."""
        return [
            self.model_copy(update=member.model_dump(exclude_none=True) | {"n": 1, "pool": None})
            for member in self.pool or []
        ]


COLUMNS_OF = {
    "preferences": ("pairs", "answers"),
    "pairs": ("pairs",),
    "demonstrations": ("answers",),
    "text": ("texts",),
}
"""What a column map may be of, by what is loaded."""


class LoadStep(Strict):
    """Bring in records from a file: preferences, completions or judgements of a run; labelled
    pairs: two given answers each, and what people said of them; demonstrations: conversations that
    end with a good answer; raw text; or a set of prompts, which is known by the step's id.

    Preferences are records of a run, or are made of rows in any format that is read.
    Demonstrations bring their own prompts, and a text has none.
    """

    id: StepId = "load"
    type: Literal[
        "preferences", "completions", "judgements", "pairs", "demonstrations", "text", "prompts"
    ]
    path: str | None = Field(None, description="Default: the experiment's `data`.")
    dataset: str | None = Field(
        None, description="Instead of a file: a dataset on the hub, or one that `datasets` loads."
    )
    dataset_split: str = "train"
    dataset_config: str | None = Field(None, description="The dataset's configuration (subset).")
    format: str | None = Field(
        None,
        description="A format of rows; see docs/data.md. Default: detected.",
    )
    columns: LabelColumns | None = Field(None, description="Or a map of the columns.")
    on_error: Literal["fail", "skip"] = Field(
        "fail", description="What to do with a row that cannot be read."
    )
    prompts: Literal["all", "other", "own"] = Field(
        "all",
        description="Of preferences and demonstrations; other: only conversations that begin with "
        "another user turn than every prompt of the experiment does. Of pairs; own: their prompts "
        "are a set by the step's id, and not those of `main`.",
    )
    holdout: Annotated[NonNegativeInt, LATE] = Field(
        0, description="Of a set of prompts that is loaded: how many are held out."
    )
    source: Annotated[Annotated[str, Field(min_length=1)] | None, LATE] = Field(
        None,
        description="Of preferences and demonstrations: the name by which `source_weights` and "
        "`conditions` of a `distill` refer to them; default: as the rows say.",
    )
    engagement: Annotated[EngagementSpec | None, LATE] = Field(
        None,
        description="Of preferences: the rows are answers that were shown to people, and what these"
        " did with each.",
    )

    @model_validator(mode="after")
    def _check_reading(self) -> LoadStep:
        if self.engagement is not None:
            unread = told(self, "format", "columns")
            if self.type != "preferences" or unread:
                raise ValueError(
                    "engagement: only for `type: preferences`, without `format` and `columns`"
                )
        if self.prompts == "other" and self.type not in ("preferences", "demonstrations"):
            raise ValueError(
                "prompts: other: only for `type: preferences` or `type: demonstrations`"
            )
        if self.prompts == "own" and self.type != "pairs":
            raise ValueError("prompts: own: only for `type: pairs`")
        if self.source is not None and self.type not in ("preferences", "demonstrations"):
            raise ValueError("source: only for `type: preferences` or `type: demonstrations`")
        if self.holdout and not self.makes_set:
            raise ValueError("holdout: only for `type: prompts`, or pairs with `prompts: own`")
        unread = told(self, "format", "columns", "on_error", "dataset_config")
        if unread and self.type == "prompts":
            raise ValueError(
                f"{', '.join(unread)}: not for `type: prompts`; a set in `prompt_sets` takes them"
            )
        given = told(self, "dataset", "format", "columns", "on_error")
        if given and self.type in ("completions", "judgements"):
            raise ValueError(
                f"{', '.join(given)}: only for `type: preferences`, `pairs`, `demonstrations` or "
                "`text`"
            )
        if self.type == "text" and self.format is not None:
            raise ValueError(
                "format: raw texts have none; `columns: {text: COLUMN}` names their column"
            )
        held = COLUMNS_OF.get(self.type, ())
        if self.columns is not None and self.columns.form not in held:
            raise ValueError(
                f"columns: these are columns of {self.columns.form}, and `type: {self.type}` reads "
                f"{' or '.join(held)}"
            )
        if self.format is not None and self.columns is not None:
            raise ValueError("give `format` or `columns`, not both")
        of_dataset = told(self, "dataset_config", "dataset_split")
        if of_dataset and self.dataset is None:
            raise ValueError(f"{', '.join(of_dataset)}: only with `dataset`")
        if self.path is not None and self.dataset is not None:
            raise ValueError("give one of `path` and `dataset`, not both")
        return self

    @property
    def makes_set(self) -> bool:
        """Whether its prompts are a set by the step's id."""
        return self.type == "prompts" or self.prompts == "own"


class LabelStep(Strict):
    """Make preferences of loaded pairs: the answers are given, and `labels` says who chooses."""

    id: StepId = "label"
    labels: Labels = Field(
        HUMAN,
        description="human: the loaded labels; ai: every judge, combined; random: a coin; or the id"
        " of one judge; or shares, {human: 0.5, ai: 0.5}: who labels a pair is drawn by the seed, "
        "and a larger share of the first keeps all that a smaller one has. With `arms`, each arm "
        "says.",
    )
    flip: Fraction | None = Field(None, description="Reverse this fraction of the labels.")
    labels_used: Annotated[PositiveInt | None, LATE] = Field(
        None, description="Use this many of the pairs; more labels hold all of fewer."
    )
    weights: dict[str, NonNegativeFloat] | None = Field(
        None, description="For `ai`: weight of each judge by id; default: equal weights."
    )
    human_price: NonNegativeFloat | None = Field(
        None, description="What one of people's labels cost, for reports; it changes no label."
    )


REFERENCE_ANSWER = "reference"
"""What `chosen` and `rejected` call the prompts' own answers."""
PEOPLES_LABELS = "labels"
"""What `better` calls what people said of loaded pairs."""
PAIR_FORMS = {
    "score": (
        "strategy",
        "tier",
        "candidates",
        "standardise",
        "consistency",
        "consistency_mean",
    ),
    "origin": ("chosen", "rejected", "match"),
    "judgements": ("of", "better", "pick", "max_chars"),
}
"""The keys that only one form of `pair` has."""
PAIR_SOURCES = ("candidates", "chosen", "rejected", "of", "better")
"""Keys that name the steps which a `pair` reads: these are in its hash, and not their names."""
_FORM_WORDS = {"score": "by score", "origin": "by origin", "judgements": "of judgements"}


class PairStep(Strict):
    """Make preferences: by the scores of judges, by where answers are from, or of judgements.
    `min_margin` is on the combined [0, 1] scale."""

    id: StepId = "pair"
    strategy: Literal[
        "best_vs_worst", "best_vs_random", "margin", "all", "length_tiered", "reference"
    ] = Field(
        "best_vs_worst",
        description="length_tiered: the shortest of the best against the longest of the worst; "
        "reference: each prompt's reference against every sample (SPIN), unjudged.",
    )
    weights: dict[str, NonNegativeFloat] | None = Field(
        None, description="Weight of each judge by id; default: equal weights."
    )
    min_margin: Fraction = 0.0
    missing: Literal["drop", "renormalise"] = "drop"
    standardise: Literal["initial"] | None = None
    consistency: StepId | None = Field(
        None, description="CREAM's soft labels (arXiv 2410.12735) from a judge of this id."
    )
    consistency_mean: bool = Field(False, description="All pairs get the mean (the paper's avg).")
    max_pairs: PositiveInt | None = Field(None, description="Keep at most this many, by margin.")
    tier: Annotated[Annotated[float, Field(ge=0.0, le=0.5)] | None, LATE] = Field(
        None,
        description="Of length_tiered: the best are within this share of a prompt's range of scores"
        " from the top, the worst from the bottom.",
    )
    max_overlap: Annotated[Fraction | None, LATE] = Field(
        None, description="Drop pairs whose answers share more word 3-grams (Jaccard)."
    )
    balance_lengths: Annotated[bool, LATE] = Field(
        False, description="Keep as many pairs with the longer answer chosen as the shorter."
    )
    source: Annotated[Annotated[str, Field(min_length=1)] | None, LATE] = Field(
        None,
        description="The name by which `source_weights` and `conditions` of a `distill` refer to "
        "these pairs; "
        "default: rlaif, or reference.",
    )
    uses: list[str] | None = None
    candidates: Annotated[Annotated[list[str], Field(min_length=1), ONE_OR_MORE] | None, LATE] = (
        Field(
            None,
            description="Completions of these steps compete; default: the latest. Each judge that "
            "scores them must have been asked about all of them.",
        )
    )
    chosen: Annotated[str | None, LATE] = Field(
        None,
        description="By origin: the completions of this step are chosen; or `reference`, the "
        "prompts' own answers.",
    )
    rejected: Annotated[str | None, LATE] = Field(
        None, description="By origin: the completions of this step, or `reference`, are rejected."
    )
    match: Annotated[Literal["parent", "index", "all"] | None, LATE] = Field(
        None,
        description="By origin, which answers to a prompt make a pair. parent: one revises the "
        "other; index: they have the same number; all: every two. Default: parent where one side "
        "revises the other, else index.",
    )
    of: Annotated[str | None, LATE] = Field(
        None,
        description="Of judgements: a judge step whose judge writes. The question as it was asked "
        "is the prompt, its written verdicts are the answers.",
    )
    better: Annotated[str | None, LATE] = Field(
        None,
        description="Of judgements: a judge step of kind `judgements`, whose best is chosen and "
        "whose worst is rejected; or `labels`: what agrees with people's labels against what does "
        "not.",
    )
    pick: Annotated[Literal["highest_variance", "all"], LATE] = Field(
        "all",
        description="Of judgements: those of each prompt's answer on whose scores they differ "
        "most, or those of all answers.",
    )
    max_chars: Annotated[PositiveInt | None, LATE] = Field(
        None, description="Of judgements: no pair whose chosen judgement is longer."
    )

    @property
    def form(self) -> Literal["score", "origin", "judgements"]:
        """What decides the pairs: scores, where answers are from, or judgements of judgements."""
        if told(self, *PAIR_FORMS["origin"]):
            return "origin"
        return "judgements" if told(self, *PAIR_FORMS["judgements"]) else "score"

    @model_validator(mode="after")
    def _check_form(self) -> PairStep:
        given = [(form, key) for form, keys in PAIR_FORMS.items() for key in told(self, *keys)]
        if len({form for form, _ in given}) > 1:
            (one, first), (two, second) = given[0], next(g for g in given if g[0] != given[0][0])
            raise ValueError(
                f"`{first}` makes pairs {_FORM_WORDS[one]}, and `{second}` {_FORM_WORDS[two]}: "
                "take the keys of one of them"
            )
        if self.form == "judgements":
            self._check_judgements()
        if self.form == "origin":
            self._check_origin()
        return self

    def _check_judgements(self) -> None:
        if self.of is None or self.better is None:
            raise ValueError(
                "`of` and `better` go together: whose judgements, and which are better"
            )
        judged = told(self, "weights", "min_margin", "missing", "uses")
        if judged:
            raise ValueError(
                f"{', '.join(judged)}: not for pairs of judgements, which `better` decides"
            )

    def _check_origin(self) -> None:
        if self.chosen is None or self.rejected is None:
            raise ValueError("`chosen` and `rejected` go together")
        sides = {self.chosen, self.rejected}
        if len(sides) == 1:
            raise ValueError(f"`chosen` and `rejected` are both {self.chosen!r}")
        judged = told(self, "weights", "min_margin", "missing", "uses")
        if REFERENCE_ANSWER in sides and (judged or self.match is not None):
            given = judged or ["match"]
            raise ValueError(
                f"{', '.join(given)}: no judge was asked about a `reference`, and each prompt has "
                "one; leave it out"
            )
        if told(self, "weights", "missing") and not told(self, "uses", "min_margin"):
            raise ValueError(
                f"{', '.join(told(self, 'weights', 'missing'))}: no effect without scores: say "
                "`min_margin`, or name judges in `uses`"
            )

    @property
    def asks_scores(self) -> bool:
        """Whether judges' scores decide which pairs are kept."""
        if self.form == "origin":
            return bool(told(self, "uses", "min_margin"))
        return self.form == "score" and self.strategy != "reference"

    @model_validator(mode="after")
    def _check_strategy(self) -> PairStep:
        if (self.tier is not None) != (self.strategy == "length_tiered"):
            raise ValueError("`tier` and `strategy: length_tiered` go together")
        judged = ("weights", "min_margin", "standardise", "consistency", "uses")
        given = [key for key in judged if getattr(self, key)]
        if self.strategy == "reference" and given:
            raise ValueError(
                f"{', '.join(given)}: strategy reference looks at no judgement; leave it out"
            )
        if self.strategy == "all" and self.min_margin > 0:
            raise ValueError(
                "`min_margin` has no effect with `strategy: all`, which keeps every difference; "
                "take `strategy: margin`"
            )
        if self.consistency_mean and self.consistency is None:
            raise ValueError("`consistency_mean` has no effect without `consistency`")
        return self

    def keys(self) -> dict[str, Any]:
        """What decides the pairs."""
        return hashed_keys(self, exclude={"id", "uses", *PAIR_SOURCES})


class CheckSpec(Strict):
    """A rule to watch on held-out answers that no judge trains on."""

    id: StepId
    rule: str
    params: dict[str, Any] = {}

    @model_validator(mode="after")
    def _validate_rule(self) -> CheckSpec:
        validate_check(self.rule, self.params)
        return self


class EvaluateStep(Strict):
    """Sample held-out prompts from the new policy and compare with other models."""

    id: StepId = "evaluate"
    model: Annotated[str, LATE] = Field(POLICY, description="The model to evaluate.")
    against: list[str] = Field(
        ["initial", "previous"], description="The models that it is compared with."
    )
    prompts: Annotated[list[StepId] | None, ONE_OR_MORE, LATE] = Field(
        None,
        description="Sets whose held-out prompts are answered; default: main. The figures of others"
        " are called SET:FIGURE.",
    )
    chat_template_kwargs: Annotated[dict[str, Any], LATE] = Field(
        {},
        description="Variables of the model's chat template in this evaluation, beside its own; not"
        " of the models that it is compared with.",
    )
    judged_by: Annotated[str, LATE] = Field(
        INITIAL,
        description="The frozen model that judges where a judge's model is the policy of the "
        "moment; a model that is made once.",
    )
    n: Count = 1
    temperature: Temperature | None = None
    max_new_tokens: PositiveInt | None = None
    judges: list[str] | None = Field(None, description="Judge ids; default: every judge.")
    checks: list[CheckSpec] = []

    @property
    def compared(self) -> list[str]:
        """What the model is compared with: with M0 in any case where another one is named."""
        named = set(self.against) - RESERVED_MODELS
        return list(dict.fromkeys([*([INITIAL] if named else []), *self.against]))

    @model_validator(mode="after")
    def _check_variables(self) -> EvaluateStep:
        check_template_variables(self.chat_template_kwargs)
        return self

    @model_validator(mode="before")
    @classmethod
    def _nothing_drawn(cls, value: Any) -> Any:
        """Files of earlier versions say how often a bootstrap drew; intervals draw nothing now."""
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if key != "resamples"}
        return value
