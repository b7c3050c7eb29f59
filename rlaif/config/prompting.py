"""A file of prompt sources: what `rlaif prompts` reads or has a model write."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from rlaif.config.base import Fraction, Seed, StepId, Strict, Temperature
from rlaif.config.filters import TextFilter
from rlaif.config.models import Columns, ModelSpec


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
        "answers, as the released data did. It makes for long answers: the report says so.",
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


class PromptsFile(Strict):
    """Prompts of several sources, filtered and mixed by weights."""

    seed: Seed = 0
    models: dict[str, ModelSpec] = {}
    sources: Annotated[list[AnySource], Field(min_length=1)]
    filters: list[TextFilter] = []
    count: PositiveInt | None = Field(
        None, description="Total number of prompts, by the sources' weights; default: all."
    )

    @model_validator(mode="after")
    def _refuse_equal_ids(self) -> PromptsFile:
        ids = [source.id for source in self.sources]
        if len(set(ids)) < len(ids):
            raise ValueError("the ids of sources must differ")
        return self
