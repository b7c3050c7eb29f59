"""All answers of a prompt rated together, one call per aspect (UltraFeedback, 2310.01377, section 2
and appendix E).

The answers stand in a shuffled order, and each rating goes back to the answer it is about. What has
no rating ("N/A") does not apply, and so does not enter the mean.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlaif.config import UltraFeedbackJudge
from rlaif.config.judging import Order
from rlaif.constitution import Constitution
from rlaif.engines.base import Capability, GenerateResult, Sampling
from rlaif.errors import ConfigError
from rlaif.parsing import text_ratings
from rlaif.records import Completion, Judgement, Prompt, Status, content_hash
from rlaif.templates import JOINT, Template, outside_fence

from .base import Answer, Call, call_id, judgement
from .common import (
    hash_judge,
    judge_template,
    mapped,
    sampling_of,
    template_values,
    text_request,
    usable,
)

LOW, HIGH = 1, 5


@dataclass(frozen=True, slots=True)
class UltraFeedback:
    """`score` is the rating from 1 to 5, mapped to [0, 1]; `principle` is the aspect.

    Order: both (a shuffled order and its reverse), random (a shuffled order), fixed (that of
    sampling). `distribution` says in which place of how many a text was shown.
    """

    id: str
    judge_hash: str
    template: Template
    aspects: tuple[str, ...]
    order: Order
    samples: int
    sampling: Sampling
    needs: frozenset[Capability] = frozenset({"generate"})
    comparative: bool = False

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call per aspect, order and sample, about all completions."""
        texts = usable(completions)
        if not texts:
            return []
        return [
            self._call(prompt, shown, aspect, index, seed)
            for aspect in self.aspects
            for shown in self._orders(texts, aspect, seed)
            for index in range(self.samples)
        ]

    def _orders(
        self, texts: Sequence[Completion], aspect: str, seed: int
    ) -> list[tuple[Completion, ...]]:
        if self.order == "fixed" or len(texts) == 1:
            return [tuple(texts)]
        shuffled = sorted(texts, key=lambda c: c.completion_id)
        key = content_hash("shuffle", seed, aspect, [c.completion_id for c in shuffled])
        random.Random(key).shuffle(shuffled)
        one = tuple(shuffled)
        return [one, one[::-1]] if self.order == "both" else [one]

    def _call(
        self, prompt: Prompt, shown: tuple[Completion, ...], aspect: str, index: int, seed: int
    ) -> Call:
        name = call_id(self.judge_hash, shown, aspect, index)
        values = template_values(
            prompt, shown, seed, low=LOW, high=HIGH, count=len(shown), aspect=aspect
        )
        request = text_request(name, self.template, values, self.sampling, seed)
        return Call(name, prompt, shown, aspect, index, request, fence=values["fence"])

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement per text, whose `shown` is that text alone: it is a rating of its own."""
        count = len(call.shown)
        if isinstance(result, GenerateResult) and result.finish_reason != "failed":
            text: str | None = result.text
            ratings = text_ratings(outside_fence(result.text, call.fence), count, LOW, HIGH)
            missing: Status = "unparsed"
        else:
            text, ratings, missing = None, {}, "failed"
        found = []
        for place, subject in enumerate(call.shown, 1):
            rating = ratings.get(place)
            status: Status = "ok" if isinstance(rating, float) else missing
            if rating == "not applicable":
                status = "not_applicable"
            found.append(
                judgement(
                    self,
                    call,
                    subject,
                    annotator_id,
                    "ai",
                    status,
                    score=mapped(rating, LOW, HIGH) if isinstance(rating, float) else None,
                    distribution={"place": float(place), "texts": float(count)},
                    raw=text,
                    shown=[subject],
                    template_hash=self.template.hash,
                )
            )
        return found


def build(
    spec: UltraFeedbackJudge, constitution: Constitution | None, beside: Path | None
) -> UltraFeedback:
    """The judge of a spec. Raises ConfigError when it names principles: its aspects are its own."""
    if spec.principles is not None:
        raise ConfigError(f"judge {spec.id}: ultrafeedback judges by `aspects`; drop `principles`")
    template = judge_template(
        spec,
        "ultrafeedback.j2",
        beside,
        allowed=JOINT,
        required=frozenset({"responses", "aspect"}),
    )
    return UltraFeedback(
        id=spec.id,
        judge_hash=hash_judge(spec, (), template),
        template=template,
        aspects=tuple(spec.aspects),
        order=spec.order,
        samples=spec.samples,
        sampling=sampling_of(spec),
    )
