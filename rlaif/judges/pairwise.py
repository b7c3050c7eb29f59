"""Which of two answers is better, by the probabilities of two labels at the next token.

After RLAIF, 2309.00267, section "Preference Labeling with LLMs": each pair is asked in both orders
by default, and the orders are averaged when judgements become scores (`compare.aggregate`), since
models prefer one slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from rlaif.config import PairwiseJudge
from rlaif.constitution import Constitution, Principle
from rlaif.engines.base import Capability, ScoreRequest
from rlaif.parsing import label_share
from rlaif.records import Completion, Judgement, Prompt, content_hash
from rlaif.templates import Template

from .base import Answer, Call, call_id, judgement
from .common import (
    applicable,
    by_principle,
    distinct_labels,
    hash_judge,
    judge_template,
    label_mass,
    label_needs,
    label_result,
    template_values,
    text_principles,
    usable,
    without_value,
)

Order = Literal["both", "random", "fixed"]


@dataclass(frozen=True, slots=True)
class Pairwise:
    """`prob_first` is P(first) / (P(first) + P(second)), on [0, 1]. Equal texts are a tie, unasked.

    Order: both (two calls per pair), random (one, drawn by seed and ids), fixed (the earlier sample
    first).
    """

    id: str
    judge_hash: str
    needs: frozenset[Capability]
    template: Template
    principles: tuple[Principle, ...]
    labels: dict[str, tuple[str, ...]]
    order: Order
    comparative: bool = True

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """The calls for every pair, per principle or one overall where there is none."""
        calls = []
        for first, second in combinations(usable(completions), 2):
            for principle in self.principles or (None,):
                name = principle.id if principle is not None else None
                if not applicable(principle, prompt) or first.text == second.text:
                    shown = (first, second)
                    calls.append(
                        Call(call_id(self.judge_hash, shown, name), prompt, shown, name, 0, None)
                    )
                    continue
                for shown in self._orders(first, second, name, seed):
                    calls.append(self._call(prompt, shown, principle, seed))
        return calls

    def _orders(
        self, first: Completion, second: Completion, principle: str | None, seed: int
    ) -> list[tuple[Completion, Completion]]:
        if self.order == "both":
            return [(first, second), (second, first)]
        if self.order == "fixed":
            return [(first, second)]
        ids = sorted([first.completion_id, second.completion_id])
        swapped = int(content_hash("order", seed, ids, principle), 16) % 2
        low, high = sorted([first, second], key=lambda c: c.completion_id)
        return [(high, low) if swapped else (low, high)]

    def _call(
        self,
        prompt: Prompt,
        shown: tuple[Completion, Completion],
        principle: Principle | None,
        seed: int,
    ) -> Call:
        principle_id = principle.id if principle is not None else None
        name = call_id(self.judge_hash, shown, principle_id)
        values = template_values(
            prompt, shown, seed, principle=principle, principles=self.principles
        )
        messages, prefill = self.template.messages(values), self.template.prefill(values)
        request = ScoreRequest(name, messages, prefill, self.labels)
        return Call(name, prompt, shown, principle_id, 0, request)

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement, about the text shown first."""
        if call.request is None:
            principle = by_principle(self.principles).get(call.principle or "")
            if not applicable(principle, call.prompt):
                return without_value(self, call, annotator_id, "not_applicable", self.template)
            return [judgement(self, call, call.shown[0], annotator_id, "ai", "tie", prob_first=0.5)]
        answer = label_result(result)
        if answer is None:
            return without_value(self, call, annotator_id, "failed", self.template)
        mass = label_mass(answer)
        prob = label_share(answer.label_probs["first"], answer.label_probs["second"])
        if prob is None:
            return without_value(
                self, call, annotator_id, "unparsed", self.template, label_mass=mass
            )
        return [
            judgement(
                self,
                call,
                call.shown[0],
                annotator_id,
                "ai",
                "ok",
                prob_first=prob,
                distribution={"first": prob, "second": 1 - prob},
                label_mass=mass,
                template_hash=self.template.hash,
            )
        ]


def build(spec: PairwiseJudge, constitution: Constitution | None, beside: Path | None) -> Pairwise:
    """The judge of a spec: per text principle, or overall where there is none."""
    principles = text_principles(spec, constitution)
    distinct_labels(spec, spec.first_labels, spec.second_labels)
    template = judge_template(
        spec, "pairwise.j2", beside, comparative=True, per_principle=bool(principles)
    )
    return Pairwise(
        id=spec.id,
        judge_hash=hash_judge(spec, principles, template),
        needs=label_needs(template),
        template=template,
        principles=tuple(principles),
        labels={"first": tuple(spec.first_labels), "second": tuple(spec.second_labels)},
        order=spec.order,
    )
