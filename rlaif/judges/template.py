"""A judge of one's own without Python: a template file, a way to read the answer, and a scale."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from rlaif.config.base import StepId, Strict
from rlaif.core.errors import ConfigError
from rlaif.judges.common import (
    JudgeInputs,
    WritingJudge,
    hash_judge,
    question_hashes,
    text_principles,
)
from rlaif.judges.parsing import (
    patterned_score,
    patterned_word,
    schema_fault,
    valid_member,
    worth_of,
)
from rlaif.judges.questions import Written, make_asking
from rlaif.judges.scored import Scored
from rlaif.judges.scores import Score, in_range
from rlaif.judges.templates import POINTWISE, load_template

ABOUT_ONE = frozenset({"principle", "principle_id", "examples", "scale"})
"""Variables that have a value only where each call is about one principle."""


class ParseSpec(Strict):
    """How a template judge's answer is read: the matches of a pattern, a JSON schema, or labels."""

    pattern: str | None = Field(None, description="A regular expression with one group.")
    json_schema: dict[str, Any] | None = None
    field: str = Field("score", description="The key of the JSON answer that holds the value.")
    values: dict[str, float | None] | None = Field(
        None,
        description="What each matched word is worth, null where the judge abstains; a number is "
        "read when absent.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> ParseSpec:
        if (self.pattern is None) == (self.json_schema is None):
            raise ValueError("give exactly one of `pattern` and `json_schema`")
        return self


class TemplateJudge(WritingJudge):
    """A judge of your own: a template file, a way to read the answer, and a scale."""

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
        if self.structured:
            raise ValueError("`structured` has no effect here: give a `json_schema` in `parse`")
        return self

    def build_judge(self, inputs: JudgeInputs) -> Scored:
        """The judge of the spec: one call for all, or with `per_principle` one per principle."""
        low, high = self.scale
        check_parse(self.id, self.parse, low, high)
        principles = text_principles(self, inputs.constitution)
        if self.per_principle and not principles:
            raise ConfigError(
                f"judge {self.id}: `per_principle` needs a `constitution` with text principles"
            )
        allowed, required = POINTWISE - ABOUT_ONE, frozenset({"response"})
        if self.per_principle:
            allowed, required = POINTWISE, required | {"principle"}
        template = load_template(self.template, allowed, required, inputs.beside)
        if template.has_prefill:
            raise ConfigError(
                f"judge {self.id}: the ---prefill--- section has no effect where the answer is "
                "written",
                template.name,
            )
        worth = self.parse.values is not None
        if worth and self.abstain_labels is not None and "abstain" not in template.variables:
            raise ConfigError(
                f"judge {self.id}: `abstain_labels` has no effect: of `parse.values` those that "
                "are null are abstentions, and the template does not use {{ abstain }}",
                template.name,
            )
        listed = principles if "principles" in template.variables else []
        if self.principles is not None and not self.per_principle and not listed:
            raise ConfigError(
                f"judge {self.id}: `principles` has no effect: set `per_principle: true`, or use "
                "{{ principles }} in the template",
                template.name,
            )
        asked = principles if self.per_principle else listed
        return Scored(
            id=self.id,
            judge_hash=hash_judge(self, asked, template),
            questions=question_hashes(self, asked, template),
            asking=make_asking(self, template),
            principles=tuple(principles) if self.per_principle else (),
            listed=tuple(listed),
            scale=self.scale,
            own_scales=False,
            samples=self.samples,
            parse=Reader(self.parse),
            json_schema=self.parse.json_schema,
        )


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads a number on [low, high] from an answer as a ParseSpec says, "abstain", or None.

    Where `values` says what a word is worth, null is an abstention; otherwise one of `words` is.
    """

    spec: ParseSpec

    def __call__(
        self, said: Written, low: float, high: float, words: Sequence[str] = ()
    ) -> Score | None:
        """The number in an answer; None where none can be read or it is off [low, high].

        `words` are what the judge may write in place of a number.
        """
        worth = self.spec.values
        if self.spec.json_schema is not None:
            value = self._read_json(said, self.spec.json_schema, words)
            return value if value == "abstain" else in_range(value, low, high)
        pattern, text, cut = self.spec.pattern or "", said.own, said.cut
        if worth is not None:
            return patterned_word(text, pattern, worth, cut)
        if patterned_word(text, pattern, dict.fromkeys(words), cut) == "abstain":
            return "abstain"
        return patterned_score(text, low, high, pattern, cut)

    def _read_json(
        self, said: Written, schema: dict[str, object], words: Sequence[str]
    ) -> Score | None:
        found = said.object(self.spec.field)
        value = None if found is None else valid_member(found, schema, self.spec.field)
        worth = self.spec.values
        if worth is None and isinstance(value, str):
            worth = dict.fromkeys(words)
        if worth is not None:
            known = {word.casefold(): number for word, number in worth.items()}
            return worth_of(value if isinstance(value, str) else str(value), known)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if math.isfinite(value) else None


def check_parse(judge: str, parse: ParseSpec, low: float, high: float) -> None:
    """Refuse a pattern without exactly one group, a bad schema, and values off the scale."""
    if parse.pattern is not None:
        try:
            groups = re.compile(parse.pattern).groups
        except re.error as error:
            raise ConfigError(
                f"judge {judge}: `pattern` is no regular expression: {error}"
            ) from None
        if groups != 1:
            raise ConfigError(
                f"judge {judge}: `pattern` must have exactly one group, and has {groups}; write "
                "(?:...) for the others"
            )
    if parse.json_schema is not None and (fault := schema_fault(parse.json_schema)):
        raise ConfigError(f"judge {judge}: `json_schema` is no JSON schema: {fault}")
    for word, value in (parse.values or {}).items():
        if value is not None and not low <= value <= high:
            raise ConfigError(
                f"judge {judge}: {word!r} is worth {value:g}, outside the scale [{low:g}, {high:g}]"
            )
