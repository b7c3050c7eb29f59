"""A judge that gives one completion a number: shared by rating, additive and template judges.

The number is written by the model and parsed, or is the mean level under the probabilities of the
levels at the next token, sum of i p(i) over sum of p(i) (2309.00267, section "Direct RLAIF").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.config import AdditiveJudge, GeneratedJudge, RatingJudge
from rlaif.constitution import Principle
from rlaif.engines.base import (
    Capability,
    GenerateRequest,
    GenerateResult,
    Sampling,
    ScoreRequest,
    ScoreResult,
)
from rlaif.errors import ConfigError
from rlaif.parsing import expected_level, last_score
from rlaif.records import Completion, Judgement, Prompt
from rlaif.templates import Template

from .base import Answer, Call, call_id, judgement
from .common import (
    applicable,
    by_principle,
    label_mass,
    label_needs,
    label_result,
    mapped,
    sampling_seed,
    template_values,
    usable,
    without_value,
)

Parser = Callable[[str, float, float], float | None]
Range = tuple[float, float]
LARGEST_LABEL = 9


@dataclass(frozen=True, slots=True)
class Scored:
    """`score` is a number on the scale, mapped to [0, 1].

    One call per completion, per principle in `principles` (overall where there is none) and per
    sample. `listed` are the principles that the template may list. Where `own_scales`, a
    principle's described scale replaces `scale` for that principle. An engine that can holds the
    answer to `json_schema`; `parse` reads any text.
    """

    id: str
    judge_hash: str
    needs: frozenset[Capability]
    template: Template
    principles: tuple[Principle, ...]
    listed: tuple[Principle, ...]
    scale: Range
    own_scales: bool
    expected: bool
    samples: int
    sampling: Sampling
    parse: Parser = last_score
    json_schema: dict[str, Any] | None = None
    comparative: bool = False

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """The calls for every completion; without a request where a principle does not apply."""
        calls = []
        for completion in usable(completions):
            for principle in self.principles or (None,):
                count = self.samples if applicable(principle, prompt) else 1
                for index in range(count):
                    calls.append(self._call(prompt, completion, principle, index, seed))
        return calls

    def _call(
        self,
        prompt: Prompt,
        completion: Completion,
        principle: Principle | None,
        index: int,
        seed: int,
    ) -> Call:
        principle_id = principle.id if principle is not None else None
        name = call_id(self.judge_hash, [completion], principle_id, index)
        request = None
        if applicable(principle, prompt):
            request = self._request(name, prompt, completion, principle, seed)
        return Call(name, prompt, (completion,), principle_id, index, request)

    def _request(
        self,
        name: str,
        prompt: Prompt,
        completion: Completion,
        principle: Principle | None,
        seed: int,
    ) -> GenerateRequest | ScoreRequest:
        low, high = scale_of(principle, self.scale, self.own_scales)
        values = template_values(
            prompt,
            [completion],
            seed,
            principle=principle,
            principles=self.listed,
            low=low,
            high=high,
            explain=not self.expected,
        )
        messages = self.template.messages(values)
        if self.expected:
            levels = range(int(low), int(high) + 1)
            labels: dict[str, tuple[str, ...]] = {
                str(level): (str(level), f" {level}") for level in levels
            }
            return ScoreRequest(name, messages, self.template.prefill(values), labels)
        s = self.sampling
        own_seed = sampling_seed(seed, name)
        sampling = Sampling(s.max_new_tokens, s.temperature, s.top_p, s.top_k, s.stop, own_seed)
        return GenerateRequest(name, messages, sampling, json_schema=self.json_schema)

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement."""
        if call.request is None:
            return without_value(self, call, annotator_id, "not_applicable", self.template)
        principle = by_principle(self.principles).get(call.principle or "")
        low, high = scale_of(principle, self.scale, self.own_scales)
        if self.expected:
            return self._read_labels(call, label_result(result), annotator_id, low, high)
        if not isinstance(result, GenerateResult) or result.finish_reason == "failed":
            return without_value(self, call, annotator_id, "failed", self.template)
        # A number of two digits that the token limit cut would be read as one digit.
        cut = result.finish_reason == "length" and high >= 10 and result.text[-1:].isdigit()
        value = None if cut else self.parse(result.text, low, high)
        if value is None:
            return without_value(
                self, call, annotator_id, "unparsed", self.template, raw=result.text
            )
        return [
            judgement(
                self,
                call,
                call.shown[0],
                annotator_id,
                "ai",
                "ok",
                score=mapped(value, low, high),
                rationale=result.reasoning or None,
                raw=result.text,
                template_hash=self.template.hash,
            )
        ]

    def _read_labels(
        self, call: Call, answer: ScoreResult | None, annotator_id: str, low: float, high: float
    ) -> list[Judgement]:
        if answer is None:
            return without_value(self, call, annotator_id, "failed", self.template)
        mass = label_mass(answer)
        probs = {level: answer.label_probs[str(level)] for level in range(int(low), int(high) + 1)}
        value = expected_level(probs)
        if value is None:
            return without_value(
                self, call, annotator_id, "unparsed", self.template, label_mass=mass
            )
        total = sum(probs.values())
        return [
            judgement(
                self,
                call,
                call.shown[0],
                annotator_id,
                "ai",
                "ok",
                # Rounding can carry a point mass on the top level past 1.
                score=min(1.0, max(0.0, mapped(value, low, high))),
                distribution={str(level): p / total for level, p in probs.items()},
                label_mass=mass,
                template_hash=self.template.hash,
            )
        ]


def scale_of(principle: Principle | None, scale: Range, own_scales: bool) -> Range:
    """The lowest and highest level that a call about `principle` may be given."""
    if own_scales and principle is not None and principle.scale:
        return min(principle.scale), max(principle.scale)
    return scale


def sampling_of(spec: GeneratedJudge) -> Sampling:
    """How the judge's answers are sampled; each call then gets its own seed."""
    return Sampling(max_new_tokens=spec.max_new_tokens, temperature=spec.temperature)


def scored_needs(template: Template, expected: bool) -> frozenset[Capability]:
    """What the engine must be able to do."""
    return label_needs(template) if expected else frozenset({"generate"})


def refuse_unused_options(spec: RatingJudge | AdditiveJudge) -> None:
    """With `expected` nothing is sampled, so an option of sampling that was set is a mistake."""
    for name in ("samples", "temperature", "max_new_tokens"):
        if spec.expected and getattr(spec, name) != type(spec).model_fields[name].default:
            raise ConfigError(
                f"judge {spec.id}: `{name}` has no effect with `expected: true`, which reads "
                "probabilities once and samples nothing; leave it out"
            )


def refuse_long_labels(judge: str, high: float) -> None:
    """A level of two digits may be several tokens, and its first would count for another level."""
    if high > LARGEST_LABEL:
        raise ConfigError(
            f"judge {judge}: `expected: true` reads one-digit labels at the next token, so a scale "
            f"may end at {LARGEST_LABEL} at most, not {high:g}; use a shorter scale or "
            "`expected: false`"
        )
