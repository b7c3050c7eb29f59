"""A judge of one's own without Python: a template file, a way to read the answer, and a scale."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlaif.config import ParseSpec, TemplateJudge
from rlaif.constitution import Constitution
from rlaif.errors import ConfigError
from rlaif.parsing import (
    patterned_score,
    patterned_word,
    schema_fault,
    valid_member,
    worth_of,
)
from rlaif.scores import Score, in_range
from rlaif.templates import POINTWISE, Template, load_template

from .common import hash_judge, question_hashes, text_principles
from .questions import Written, asking
from .scored import Scored

ABOUT_ONE = frozenset({"principle", "principle_id", "examples", "scale"})
"""Variables that have a value only where each call is about one principle."""


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
            value = self._json(said, self.spec.json_schema, words)
            return value if value == "abstain" else in_range(value, low, high)
        pattern, text, cut = self.spec.pattern or "", said.own, said.cut
        if worth is not None:
            return patterned_word(text, pattern, worth, cut)
        if patterned_word(text, pattern, dict.fromkeys(words), cut) == "abstain":
            return "abstain"
        return patterned_score(text, low, high, pattern, cut)

    def _json(self, said: Written, schema: dict[str, object], words: Sequence[str]) -> Score | None:
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


def build(spec: TemplateJudge, constitution: Constitution | None, beside: Path | None) -> Scored:
    """The judge of a spec: one call for all, or one per text principle with `per_principle`."""
    low, high = spec.scale
    check_parse(spec.id, spec.parse, low, high)
    principles = text_principles(spec, constitution)
    if spec.per_principle and not principles:
        raise ConfigError(
            f"judge {spec.id}: `per_principle` needs a `constitution` with text principles"
        )
    template = _template(spec, beside)
    if template.has_prefill:
        raise ConfigError(
            f"judge {spec.id}: the ---prefill--- section has no effect where the answer is written",
            template.name,
        )
    worth = spec.parse.values is not None
    if worth and spec.abstain_labels is not None and "abstain" not in template.variables:
        raise ConfigError(
            f"judge {spec.id}: `abstain_labels` has no effect: of `parse.values` those that are "
            "null are abstentions, and the template does not use {{ abstain }}",
            template.name,
        )
    listed = principles if "principles" in template.variables else []
    if spec.principles is not None and not spec.per_principle and not listed:
        raise ConfigError(
            f"judge {spec.id}: `principles` has no effect: set `per_principle: true`, or use "
            "{{ principles }} in the template",
            template.name,
        )
    asked = principles if spec.per_principle else listed
    return Scored(
        id=spec.id,
        judge_hash=hash_judge(spec, asked, template),
        questions=question_hashes(spec, asked, template),
        asking=asking(spec, template),
        principles=tuple(principles) if spec.per_principle else (),
        listed=tuple(listed),
        scale=spec.scale,
        own_scales=False,
        samples=spec.samples,
        parse=Reader(spec.parse),
        json_schema=spec.parse.json_schema,
    )


def _template(spec: TemplateJudge, beside: Path | None) -> Template:
    allowed, required = POINTWISE, frozenset({"response"})
    if spec.per_principle:
        required |= {"principle"}
    else:
        allowed -= ABOUT_ONE
    return load_template(spec.template, allowed, required, beside)
