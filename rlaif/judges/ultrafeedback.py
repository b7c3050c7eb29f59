"""All answers of a prompt rated together, one call per aspect (UltraFeedback, 2310.01377, section 2
and appendix E).

The answers stand in a shuffled order, and each rating goes back to the answer it is about. What has
no rating ("N/A") does not apply, and so does not enter the mean; where the judge cannot tell, it
abstains.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.config import UltraFeedbackJudge
from rlaif.config.judging import Order
from rlaif.constitution import Constitution
from rlaif.engines.base import Capability, GenerateResult
from rlaif.errors import ConfigError
from rlaif.parsing import json_object, text_ratings
from rlaif.records import Completion, Judgement, Prompt, Status, content_hash
from rlaif.templates import JOINT

from .base import Answer, Call, call_id, judgement
from .common import hash_judge, judge_template, mapped, template_values, usable
from .questions import Asking, answer_schema, asking, own_words

LOW, HIGH = 1, 5
_STATUS: dict[str, Status] = {"not applicable": "not_applicable", "abstain": "abstain"}


@dataclass(frozen=True, slots=True)
class UltraFeedback:
    """`score` is the rating from 1 to 5, mapped to [0, 1]; `principle` is the aspect.

    Order: both (a shuffled order and its reverse), random (a shuffled order), fixed (that of
    sampling). `distribution` says in which place of how many a text was shown.
    """

    id: str
    judge_hash: str
    asking: Asking
    aspects: tuple[str, ...]
    order: Order
    samples: int
    comparative: bool = False

    @property
    def needs(self) -> frozenset[Capability]:
        """Text."""
        return self.asking.needs

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
        schema = self._schema(len(shown), aspect) if self.asking.structured else None
        request, _ = self.asking.request(name, values, {}, seed, schema)
        return Call(name, prompt, shown, aspect, index, request, fence=values["fence"])

    def _schema(self, count: int, aspect: str) -> dict[str, Any]:
        ratings = [*map(str, range(LOW, HIGH + 1)), *self.asking.abstain[:1]]
        if aspect == "honesty":
            ratings.append("N/A")
        one = answer_schema({"rating": ratings, "rationale": None})
        return answer_schema({f"text_{place}": one for place in range(1, count + 1)})

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement per text, whose `shown` is that text alone: it is a rating of its own."""
        count = len(call.shown)
        if isinstance(result, GenerateResult) and result.finish_reason != "failed":
            text: str | None = result.text
            said = in_parts(own_words(call, result))
            ratings = text_ratings(said, count, LOW, HIGH, self.asking.abstain)
            missing: Status = "unparsed"
        else:
            text, ratings, missing = None, {}, "failed"
        found = []
        for place, subject in enumerate(call.shown, 1):
            rating = ratings.get(place)
            status: Status = "ok"
            if not isinstance(rating, float):
                status = _STATUS.get(rating or "", missing)
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
                    template_hash=self.asking.template.hash,
                )
            )
        return found


def in_parts(text: str) -> str:
    """A JSON answer, {"text_1": {"rating": ...}, ...}, as parts that each name their text; any
    other answer as it is."""
    rated = {
        name.removeprefix("text_"): row.get("rating")
        for name, row in (json_object(text) or {}).items()
        if isinstance(row, dict)
    }
    return "\n".join(f"Text {n}\nRating: {rating}" for n, rating in rated.items()) or text


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
        asking=asking(spec, template),
        aspects=tuple(spec.aspects),
        order=spec.order,
        samples=spec.samples,
    )
