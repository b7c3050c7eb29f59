"""A judge that gives one completion a number: shared by rating, additive and template judges.

The number is written by the model and parsed, or is the mean level under the probabilities of the
levels at the next token, sum of i p(i) over sum of p(i) (2309.00267, section "Direct RLAIF").

`additive` counts points from 0 to 5, after self-rewarding language models (2401.10020, figure 2);
the wording is our own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Literal

from pydantic import PositiveInt

from rlaif.config.base import Count, StepId, Temperature
from rlaif.constitution.model import Principle
from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Judgement, Prompt
from rlaif.engines.base import ScoreResult
from rlaif.judges.base import Answer, Call, Verdict, call_id, make_judgement
from rlaif.judges.common import (
    JudgeInputs,
    VerdictJudge,
    WritingJudge,
    applicable,
    by_principle,
    hash_judge,
    judge_template,
    mapped,
    question_hashes,
    template_values,
    text_principles,
    usable,
)
from rlaif.judges.forms import Form
from rlaif.judges.parsing import expected_level
from rlaif.judges.questions import AskingJudge, Labels, Written, distinct_labels, make_asking
from rlaif.judges.scores import Score, score_reading

Parser = Callable[[Written, float, float, Sequence[str]], Score | None]
"""From an answer, the ends of the scale and the words for an abstention to what was said."""
Range = tuple[float, float]
FIELD = "score"
MOST_LEVELS = 26


class AdditiveJudge(WritingJudge):
    """Self-rewarding additive 0-5 score (arXiv 2401.10020); several samples are averaged."""

    kind: Literal["additive"]
    id: StepId = "additive"
    samples: Count = 3
    temperature: Temperature = 0.7
    max_new_tokens: PositiveInt = 200
    expected: bool = False

    @property
    def written(self) -> bool:
        """Unless the expected score is read."""
        return not self.expected

    def build_judge(self, inputs: JudgeInputs) -> Scored:
        """The judge of the spec: overall quality, and the principles that it names, if any."""
        named: list[Principle] = []
        if self.principles is not None:
            named = text_principles(self, inputs.constitution)
        template = judge_template(self, inputs.beside)
        if named and "principles" not in template.variables:
            raise ConfigError(
                f"judge {self.id}: `principles` has no effect, since the template does not use "
                "{{ principles }}",
                template.name,
            )
        if self.expected:
            check_levels(self, *POINTS)
        return Scored(
            id=self.id,
            judge_hash=hash_judge(self, named, template),
            questions=question_hashes(self, named, template),
            asking=make_asking(self, template),
            principles=(),
            listed=tuple(named),
            scale=POINTS,
            own_scales=False,
            samples=1 if self.expected else self.samples,
        )


def score_of(
    said: Written, low: float, high: float, words: Sequence[str], form: Form | None = None
) -> Score | None:
    """The score in an answer, "abstain" for one of `words`; see `Written.read`."""
    return said.read(FIELD, score_reading(low, high, words), form)


@dataclass(frozen=True, slots=True)
class Scored(AskingJudge):
    """`score` is a number on the scale, mapped to [0, 1].

    One call per completion, per principle in `principles` (overall where there is none) and per
    sample. `listed` are the principles that the template may list. Where `own_scales`, a
    principle's described scale replaces `scale` for that principle. `parse` reads a score that is
    written; `json_schema` is what the answer should be, where that is not a score with reasons.
    """

    questions: Mapping[str | None, str]
    principles: tuple[Principle, ...]
    listed: tuple[Principle, ...]
    scale: Range
    own_scales: bool
    samples: int
    parse: Parser | None = None
    json_schema: dict[str, Any] | None = None
    comparative: bool = False

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """The calls for every completion; without a request where a principle does not apply."""
        calls = []
        for completion in usable(completions):
            for principle in self.principles or (None,):
                about = principle.id if principle is not None else None
                applies = applicable(principle, prompt)
                low, high = scale_of(principle, self.scale, self.own_scales)
                levels = {} if self.asking.written else level_labels(low, high)
                every = range(int(low), int(high) + 1)
                schema = self.json_schema or self.asking.schema(FIELD, map(str, every))
                values = template_values(
                    prompt,
                    [completion],
                    seed,
                    principle=principle,
                    principles=self.listed,
                    low=low,
                    high=high,
                    levels=[(label, level) for level, label in levels.items()],
                )
                for index in range(self.samples if applies else 1):
                    name = call_id(self.questions[about], [completion], about, index)
                    call = Call(name, prompt, (completion,), about, index)
                    if applies:
                        call = self.asking.ask(call, values, level_forms(levels), seed, schema)
                    calls.append(call)
        return calls

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement."""
        principle = by_principle(self.principles).get(call.principle or "")
        low, high = scale_of(principle, self.scale, self.own_scales)

        def read_text(said: Written) -> Verdict | None:
            words, form = self.asking.abstain, self.asking.template.form
            if self.parse is not None:
                value = self.parse(said, low, high, words)
            else:
                value = score_of(said, low, high, words, form)
            if value is None or value == "abstain":
                return None if value is None else Verdict("abstain")
            return Verdict("ok", score=mapped(value, low, high))

        verdict = self.asking.read_verdict(
            call, result, lambda answer: read_mean_level(answer, low, high), read_text
        )
        return [make_judgement(self, call, annotator_id, verdict)]


def read_mean_level(answer: ScoreResult, low: float, high: float) -> Verdict | None:
    """The mean level under the probabilities of the levels, mapped to [0, 1], and each level's
    share of these as the distribution; None where no level has any."""
    labels = level_labels(low, high)
    probs = {level: answer.label_probs[label] for level, label in labels.items()}
    value = expected_level(probs)
    if value is None:
        return None
    total = sum(probs.values())
    # Rounding can carry a point mass on the top level past 1.
    score = min(1.0, max(0.0, mapped(value, low, high)))
    return Verdict("ok", score, distribution={str(k): p / total for k, p in probs.items()})


def scale_of(principle: Principle | None, scale: Range, own_scales: bool) -> Range:
    """The lowest and highest level that a call about `principle` may be given."""
    if own_scales and principle is not None and principle.scale:
        return min(principle.scale), max(principle.scale)
    return scale


def level_labels(low: float, high: float) -> dict[int, str]:
    """The label of each level: its digit, or a letter where a level has two digits.

    "10" may be two tokens, of which the first would count for level 1 (arXiv 2309.00267).
    """
    levels = range(int(low), int(high) + 1)
    if high <= 9:
        return {level: str(level) for level in levels}
    return dict(zip(levels, ascii_uppercase, strict=False))


def level_forms(levels: Mapping[int, str]) -> Labels:
    """The surface forms of each level's label."""
    return {label: (label, f" {label}") for label in levels.values()}


def check_levels(spec: VerdictJudge, low: float, high: float) -> None:
    """There are letters for 26 levels, and none of the labels may be an abstention as well."""
    distinct_labels(spec, level_forms(level_labels(low, high)))
    if high - low >= MOST_LEVELS:
        raise ConfigError(
            f"judge {spec.id}: `expected: true` reads one label per level and knows {MOST_LEVELS}; "
            f"the scale has {high - low + 1:g} levels; use a shorter one or `expected: false`"
        )


POINTS = (0, 5)
