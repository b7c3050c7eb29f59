"""P(yes) against P(no) at the next token, per completion and text principle.

After GenRM, 2408.15240, figure 3 and equation 4, where the score is the probability of Yes; here it
is the share of Yes in the mass on both answers, and that mass is recorded. With reasons first
(section 3.3 there) the score is the mean over the sampled reasons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlaif.config.base import StepId
from rlaif.constitution.model import Principle
from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Judgement, Prompt
from rlaif.engines.base import ScoreResult
from rlaif.judges.base import Answer, Call, Verdict, call_id, make_judgement
from rlaif.judges.common import (
    JudgeInputs,
    LabelJudge,
    hash_judge,
    judge_template,
    question_hashes,
    template_values,
    text_principles,
    usable,
)
from rlaif.judges.questions import AskingJudge, distinct_labels, label_share, make_asking


class YesNoJudge(LabelJudge):
    """Pointwise: P(yes) against P(no) at the next token, one call per text principle."""

    kind: Literal["yes_no"]
    id: StepId = "yes_no"
    yes_labels: list[str] = ["Yes", " Yes", "yes", " yes"]
    no_labels: list[str] = ["No", " No", "no", " no"]

    def build_judge(self, inputs: JudgeInputs) -> YesNo:
        """The judge of the spec. Raises ConfigError when there is no principle to ask about."""
        principles = text_principles(self, inputs.constitution)
        if not principles:
            raise ConfigError(
                f"judge {self.id}: kind {self.kind} asks about text principles, and there is none: "
                "give a `constitution` with a principle that has `text` and no `check`, or name "
                "one in `principles`"
            )
        labels = distinct_labels(self, {"yes": self.yes_labels, "no": self.no_labels})
        template = judge_template(self, inputs.beside, per_principle=True)
        return YesNo(
            id=self.id,
            judge_hash=hash_judge(self, principles, template),
            questions=question_hashes(self, principles, template),
            asking=make_asking(self, template, self.cot),
            principles=tuple(principles),
            labels=labels,
            samples=self.samples,
        )


@dataclass(frozen=True, slots=True)
class YesNo(AskingJudge):
    """`score` is P(yes) / (P(yes) + P(no)), on [0, 1]; unparsed where both are 0."""

    questions: Mapping[str | None, str]
    principles: tuple[Principle, ...]
    labels: dict[str, tuple[str, ...]]
    samples: int = 1
    comparative: bool = False

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call per completion, principle and sample; it has no request where the principle
        does not apply to the prompt."""
        calls = []
        for completion in usable(completions):
            for principle in self.principles:
                applies = principle.applies(prompt)
                values = template_values(
                    prompt, [completion], seed, principle=principle, principles=self.principles
                )
                for index in range(self.samples if applies else 1):
                    name = call_id(self.questions[principle.id], [completion], principle.id, index)
                    call = Call(name, prompt, (completion,), principle.id, index)
                    asked = self.asking.ask(call, values, self.labels, seed) if applies else call
                    calls.append(asked)
        return calls

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement."""
        verdict = self.asking.read_verdict(call, result, read_yes_share)
        return [make_judgement(self, call, annotator_id, verdict)]


def read_yes_share(answer: ScoreResult) -> Verdict | None:
    """P(yes) / (P(yes) + P(no)), on [0, 1]; None where both are 0."""
    score = label_share(answer.label_probs["yes"], answer.label_probs["no"])
    if score is None:
        return None
    return Verdict("ok", score=score, distribution={"yes": score, "no": 1 - score})
