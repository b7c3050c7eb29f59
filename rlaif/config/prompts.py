"""`prompts`: the sets of an experiment, and the sources that a file of prompts is mixed from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from rlaif.config.base import Fraction, Seed, StepId, Strict, Temperature
from rlaif.config.environments import AnyEnvironment
from rlaif.config.filters import TextFilter
from rlaif.config.models import ModelSpec


class Columns(Strict):
    """Which column of a dataset holds what. Give `prompt` (text) or `messages`."""

    prompt: str | None = None
    messages: str | None = None
    tags: str | None = None
    reference: str | None = None
    split: str | None = None
    group: str | None = Field(
        None,
        description="What prompts that belong together have in common, such as both orders of a "
        "pair: they are drawn, batched and judged together. Default: `group`, in prompts of a run.",
    )


class Source(Strict):
    """What every source has: its share of the mix, and tags for its prompts."""

    id: StepId
    weight: PositiveFloat = 1.0
    tags: list[str] = []


class FileSource(Source):
    """Prompts that are there: a file, or any dataset of `datasets`."""

    kind: Literal["file"]
    path: str | None = None
    dataset: str | None = None
    dataset_split: str = "train"
    columns: Columns = Columns()

    @model_validator(mode="after")
    def _require_one_source(self) -> FileSource:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give `path` or `dataset`")
        return self


class WrittenSource(Source):
    """Prompts that a model writes: `count` of them, in at most `calls` calls."""

    by: str = "writer"
    count: PositiveInt
    calls: PositiveInt | None = Field(None, description="Default: 4 per prompt.")
    temperature: Temperature = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_new_tokens: PositiveInt = 128
    most_alike: Fraction = Field(
        0.7, description="Reject prompts with a higher ROUGE-L F1 against an existing one."
    )
    min_words: PositiveInt = 3
    max_words: PositiveInt = 150


class SelfInstructSource(WrittenSource):
    """New tasks after examples (arXiv 2212.10560)."""

    kind: Literal["self_instruct"]
    seeds: str = Field(description="A file of seed prompts.")
    seed_examples: PositiveInt = 6
    own_examples: NonNegativeInt = Field(2, description="Examples that the model wrote before.")
    temperature: Temperature = 0.7
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    max_new_tokens: PositiveInt = 256
    template: str = "prompts/generate/self_instruct.j2"


class MagpieSource(WrittenSource):
    """What a chat model writes in the user's place (arXiv 2406.08464)."""

    kind: Literal["magpie"]
    system_prompt: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="The system prompt, which steers the topics."
    )
    longest_answers: Annotated[float, Field(ge=1.0)] | None = Field(
        None,
        description="Write this many times `count`, answer each, and keep those with the longest "
        "answers, as the released data did. This favours long answers, and the report says so.",
    )


class EvolveSource(WrittenSource):
    """Given prompts made harder or turned to something else (arXiv 2304.12244)."""

    kind: Literal["evolve"]
    of: str = Field(description="A file of prompts.")
    operations: Annotated[
        list[Literal["constrain", "deepen", "concretise", "reason", "broaden"]],
        Field(min_length=1),
    ] = ["constrain", "deepen", "concretise", "reason", "broaden"]
    template: str = "prompts/generate/evolve.j2"


class TopicsSource(WrittenSource):
    """What somebody would ask about something: every persona with every topic, over and over.
    With `red_team` requests that a careful assistant has to handle with care."""

    kind: Literal["topics"]
    topics: list[str] = []
    personas: list[str] = []
    red_team: bool = False
    template: str = "prompts/generate/topics.j2"

    @model_validator(mode="after")
    def _about_something(self) -> TopicsSource:
        if not (self.topics or self.personas):
            raise ValueError("give `topics`, `personas` or both")
        return self


AnySource = Annotated[
    FileSource | SelfInstructSource | MagpieSource | EvolveSource | TopicsSource,
    Field(discriminator="kind"),
]


class PromptMix(Strict):
    """Prompts of several sources, filtered and mixed by weights."""

    seed: Seed = 0
    sources: Annotated[list[AnySource], Field(min_length=1)]
    filters: list[TextFilter] = []
    count: PositiveInt | None = Field(
        None, description="Total number of prompts, by the sources' weights; default: all."
    )

    @model_validator(mode="after")
    def _refuse_equal_ids(self) -> Self:
        ids = [source.id for source in self.sources]
        if len(set(ids)) < len(ids):
            raise ValueError("the ids of sources must differ")
        return self

    @property
    def written(self) -> list[WrittenSource]:
        """The sources that a model writes."""
        return [source for source in self.sources if isinstance(source, WrittenSource)]


class PromptsFile(PromptMix):
    """What `rlaif prompts` reads: a mix, and the models that write."""

    models: dict[str, ModelSpec] = {}


PROMPT_SOURCES = ("path", "dataset", "environment", "generate")
"""The keys of a set of prompts of which one says where they come from."""


class PromptsSpec(Strict):
    """The instructions. `path` is JSONL or Parquet; `dataset` any `datasets` dataset; an
    `environment` has episodes, whose answers have several turns; `generate` has models write them.
    Without any of these they are the prompts of the pairs that the experiment loads."""

    path: str | None = None
    dataset: str | None = None
    generate: PromptMix | None = Field(
        None,
        description="Sources that are mixed before the first step, some of them written by models "
        "of the experiment, as `rlaif prompts` does.",
    )
    environment: AnyEnvironment | None = Field(
        None, description="What the policy plays: the prompts are the starts of its episodes."
    )
    episodes: PositiveInt | None = Field(
        None,
        description="How many episodes of `environment` there are, with the seeds 0, 1, ..., those "
        "that are held out included.",
    )
    dataset_split: str = "train"
    columns: Columns = Columns()
    holdout: PositiveInt = Field(
        64, description="Prompts held out for evaluation, never trained on."
    )
    limit: PositiveInt | None = Field(None, description="Use at most this many training prompts.")
    max_words: PositiveInt | None = Field(
        None, description="Drop prompts with more words than this over all turns."
    )
    count: PositiveInt | None = Field(
        None, description="How many rows `dataset` has, so that a dry run need not read it."
    )
    validation: NonNegativeInt = Field(
        0,
        description="Prompts for choosing among models, neither trained on nor reported.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> PromptsSpec:
        given = [key for key in PROMPT_SOURCES if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of {', '.join(f'`{key}`' for key in given)}")
        if self.count is not None and self.dataset is None:
            raise ValueError("count: only with `dataset`; a file is read in dry runs too")
        if (self.environment is None) != (self.episodes is None):
            raise ValueError("give `environment` and `episodes` (how many there are), or neither")
        return self

    @model_validator(mode="after")
    def _only_rows_have_columns(self) -> PromptsSpec:
        if self.columns != Columns():
            if self.environment is not None:
                raise ValueError("columns: the starts of episodes have none; leave it out")
            if self.generate is not None:
                raise ValueError("columns: they belong to a source of `generate`")
        return self

    @property
    def from_pairs(self) -> bool:
        """Whether the prompts are those of the loaded pairs."""
        return all(getattr(self, key) is None for key in PROMPT_SOURCES)


class PromptSetSpec(PromptsSpec):
    """A further set of prompts; by default none of them is held out."""

    holdout: NonNegativeInt = Field(
        0, description="Prompts held out for evaluation, never trained on."
    )

    @model_validator(mode="after")
    def _has_source(self) -> PromptSetSpec:
        if self.from_pairs:
            keys = ", ".join(f"`{key}`" for key in PROMPT_SOURCES)
            raise ValueError(f"a set of prompts needs one of {keys}")
        return self
