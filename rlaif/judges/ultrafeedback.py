"""All answers of a prompt rated together, one call per aspect (UltraFeedback, 2310.01377, section 2
and appendix E).

The answers stand in a shuffled order, and each rating goes back to the answer it is about. What has
no rating ("N/A") does not apply, and so does not enter the mean; where the judge cannot tell, it
abstains. The ratings are written, or each is the mean level under the probabilities of the levels
where that text's rating would stand (2309.00267, section "Direct RLAIF").
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from rlaif.config.base import StepId
from rlaif.core.records import Completion, Judgement, Prompt, Status, content_hash
from rlaif.engines.base import GenerateResult, ScoreResult
from rlaif.judges.base import Answer, Call, Verdict, call_id, make_judgement
from rlaif.judges.common import (
    JudgeInputs,
    Order,
    WritingJudge,
    hash_judge,
    judge_template,
    mapped,
    template_values,
    usable,
)
from rlaif.judges.parsing import TextRating, text_ratings
from rlaif.judges.questions import (
    Asking,
    AskingJudge,
    Labels,
    Written,
    answer_schema,
    distinct_labels,
    likeliest,
    make_asking,
    text_result,
    written,
)
from rlaif.judges.scored import level_forms, level_labels, read_mean_level
from rlaif.judges.scores import USUAL, score_alone
from rlaif.judges.templates import JOINT

LOW, HIGH = 1, 5
HONESTY, NOT_APPLICABLE = "honesty", "N/A"
LABELS: Labels = {
    **level_forms(level_labels(LOW, HIGH)),
    NOT_APPLICABLE: ("N/A", " N/A", "N", " N"),
}
_STATUS: dict[str, Status] = {"not applicable": "not_applicable", "abstain": "abstain"}


class UltraFeedbackJudge(WritingJudge):
    """Four aspects, each rated for all answers of a prompt in one call, which the judge writes, or
    by label probabilities with all answers in view."""

    kind: Literal["ultrafeedback"]
    id: StepId = "ultrafeedback"
    aspects: Annotated[list[str], Field(min_length=1)] = [
        "instruction_following",
        "honesty",
        "truthfulness",
        "helpfulness",
    ]
    order: Order = "both"
    max_new_tokens: PositiveInt = 512
    expected: bool = Field(
        False, description="Read each text's expected level from label probabilities."
    )

    @property
    def written(self) -> bool:
        """Unless the expected ratings are read."""
        return not self.expected

    def build_judge(self, inputs: JudgeInputs) -> UltraFeedback:
        """The judge of the spec. Raises ConfigError when it names principles: it has `aspects`."""
        self.refuse_principles("ultrafeedback judges by `aspects`")
        template = judge_template(
            self,
            inputs.beside,
            allowed=JOINT,
            required=frozenset({"responses", "aspect"} | ({"place"} if self.expected else set())),
        )
        return UltraFeedback(
            id=self.id,
            judge_hash=hash_judge(self, (), template),
            asking=make_asking(self, template),
            aspects=tuple(self.aspects),
            order=self.order,
            samples=self.samples,
            labels=distinct_labels(self, LABELS) if self.expected else {},
        )


@dataclass(frozen=True, slots=True)
class UltraFeedback(AskingJudge):
    """`score` is the rating from 1 to 5, mapped to [0, 1]; `principle` is the aspect.

    Order: both (a shuffled order and its reverse), random (a shuffled order), fixed (that of
    sampling). `distribution` says in which place of how many a text was shown; where ratings are
    read (`labels`; one call per text), also each level's share of the probability.
    """

    aspects: tuple[str, ...]
    order: Order
    samples: int
    labels: Labels
    comparative: bool = False

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call per aspect, order and sample, about all completions; where levels are read, one
        for each of these."""
        texts = usable(completions)
        if not texts:
            return []
        places: Sequence[int | None] = [None] if self.asking.written else range(1, len(texts) + 1)
        calls = []
        for aspect in self.aspects:
            labels = dict(self.labels)
            if aspect != HONESTY:
                labels.pop(NOT_APPLICABLE, None)
            schema = self._make_schema(len(texts), aspect) if self.asking.structured else None
            for shown in self._draw_orders(texts, aspect, seed):
                for index, place in product(range(self.samples), places):
                    rated = () if place is None else (shown[place - 1],)
                    name = call_id(self.judge_hash, [*rated, *shown], aspect, index)
                    call = Call(name, prompt, shown, aspect, index, place=place)
                    values = template_values(
                        prompt,
                        shown,
                        seed,
                        low=LOW,
                        high=HIGH,
                        count=len(shown),
                        aspect=aspect,
                        place=place,
                    )
                    calls.append(self.asking.ask(call, values, labels, seed, schema))
        return calls

    def _draw_orders(
        self, texts: Sequence[Completion], aspect: str, seed: int
    ) -> list[tuple[Completion, ...]]:
        if self.order == "fixed" or len(texts) == 1:
            return [tuple(texts)]
        shuffled = sorted(texts, key=lambda c: c.completion_id)
        key = content_hash("shuffle", seed, aspect, [c.completion_id for c in shuffled])
        random.Random(key).shuffle(shuffled)
        one = tuple(shuffled)
        return [one, one[::-1]] if self.order == "both" else [one]

    def _make_schema(self, count: int, aspect: str) -> dict[str, Any]:
        ratings = [*map(str, range(LOW, HIGH + 1)), *self.asking.abstain[:1]]
        if aspect == HONESTY:
            ratings.append(NOT_APPLICABLE)
        one = answer_schema({"rating": ratings, "rationale": None})
        return answer_schema({f"text_{place}": one for place in range(1, count + 1)})

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement per text that the call asks about, whose `shown` is that text alone: it is
        a rating of its own."""
        if call.place is not None:
            verdicts = {call.place: self.asking.read_verdict(call, result, _read_level)}
        else:
            verdicts = self._read_ratings(call, text_result(result))
        found = []
        for place, verdict in verdicts.items():
            where = {"place": float(place), "texts": float(len(call.shown))}
            placed = replace(verdict, distribution={**where, **(verdict.distribution or {})})
            subject = call.shown[place - 1]
            found.append(make_judgement(self, call, annotator_id, placed, about=subject))
        return found

    def _read_ratings(self, call: Call, result: GenerateResult | None) -> dict[int, Verdict]:
        """The verdict on each text shown, from 1."""
        template_hash, count = self.asking.template.hash, len(call.shown)
        if result is None:
            failed = Verdict("failed", template_hash=template_hash)
            return dict.fromkeys(range(1, count + 1), failed)
        ratings = ratings_of(written(call, result), count, self.asking)
        found = {}
        for place in range(1, count + 1):
            rating = ratings.get(place)
            score = mapped(rating, LOW, HIGH) if isinstance(rating, float) else None
            status = "ok" if isinstance(rating, float) else _STATUS.get(rating or "", "unparsed")
            found[place] = Verdict(status, score, raw=result.text, template_hash=template_hash)
        return found


def _read_level(answer: ScoreResult) -> Verdict | None:
    if likeliest(answer.label_probs) == NOT_APPLICABLE:
        return Verdict("not_applicable")
    return read_mean_level(answer, LOW, HIGH)


def ratings_of(said: Written, count: int, asking: Asking) -> dict[int, TextRating]:
    """The ratings in a JSON answer, {"text_1": {"rating": ...}, ...}, or in a text; see
    `parsing.text_ratings`."""
    words, found = asking.abstain, said.object("text_1")
    if found is None:
        form = asking.template.form or USUAL
        return text_ratings(said.own, count, LOW, HIGH, words, form, said.cut)
    rows = {n: found.members.get(f"text_{n}") for n in range(1, count + 1)}
    read = {n: _read_rating(row, words) for n, row in rows.items() if found.whole}
    return {n: rating for n, rating in read.items() if rating is not None}


def _read_rating(row: Any, words: Sequence[str]) -> TextRating | None:
    value = row.get("rating") if isinstance(row, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if str(value).strip().casefold() in ("n/a", "not applicable"):
        return "not applicable"
    read = score_alone(str(value), LOW, HIGH, words)
    return None if read is None else read.value
