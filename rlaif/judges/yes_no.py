"""P(yes) against P(no) at the next token, one call per completion and text principle.

After GenRM, 2408.15240, figure 3 and equation 4, where the score is the probability of Yes; here it
is the share of Yes in the mass on both answers, and that mass is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlaif.config import YesNoJudge
from rlaif.constitution import Constitution, Principle
from rlaif.engines.base import Capability, ScoreRequest
from rlaif.errors import ConfigError
from rlaif.parsing import label_share
from rlaif.records import Completion, Judgement, Prompt
from rlaif.templates import Template

from .base import Answer, Call, call_id, judgement
from .common import (
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


@dataclass(frozen=True, slots=True)
class YesNo:
    """`score` is P(yes) / (P(yes) + P(no)), on [0, 1]; unparsed where both are 0."""

    id: str
    judge_hash: str
    needs: frozenset[Capability]
    template: Template
    principles: tuple[Principle, ...]
    labels: dict[str, tuple[str, ...]]
    comparative: bool = False

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call per completion and principle; it has no request where the principle does not
        apply to the prompt."""
        return [
            self._call(prompt, completion, principle, seed)
            for completion in usable(completions)
            for principle in self.principles
        ]

    def _call(
        self, prompt: Prompt, completion: Completion, principle: Principle, seed: int
    ) -> Call:
        name = call_id(self.judge_hash, [completion], principle.id)
        request = None
        if principle.applies(prompt):
            values = template_values(
                prompt, [completion], seed, principle=principle, principles=self.principles
            )
            messages, prefill = self.template.messages(values), self.template.prefill(values)
            request = ScoreRequest(name, messages, prefill, self.labels)
        return Call(name, prompt, (completion,), principle.id, 0, request)

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement."""
        if call.request is None:
            return without_value(self, call, annotator_id, "not_applicable", self.template)
        answer = label_result(result)
        if answer is None:
            return without_value(self, call, annotator_id, "failed", self.template)
        mass = label_mass(answer)
        score = label_share(answer.label_probs["yes"], answer.label_probs["no"])
        if score is None:
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
                score=score,
                distribution={"yes": score, "no": 1 - score},
                label_mass=mass,
                template_hash=self.template.hash,
            )
        ]


def build(spec: YesNoJudge, constitution: Constitution | None, beside: Path | None) -> YesNo:
    """The judge of a spec. Raises ConfigError when there is no principle to ask about."""
    principles = text_principles(spec, constitution)
    if not principles:
        raise ConfigError(
            f"judge {spec.id}: kind yes_no asks about text principles, and there is none: give a "
            "`constitution` with a principle that has `text` and no `check`, or name one in "
            "`principles`"
        )
    distinct_labels(spec, spec.yes_labels, spec.no_labels)
    template = judge_template(spec, "yes_no.j2", beside, per_principle=True)
    return YesNo(
        id=spec.id,
        judge_hash=hash_judge(spec, principles, template),
        needs=label_needs(template),
        template=template,
        principles=tuple(principles),
        labels={"yes": tuple(spec.yes_labels), "no": tuple(spec.no_labels)},
    )
