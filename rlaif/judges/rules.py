"""The constitution's `check`s run as programs: no model is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlaif.config.base import StepId
from rlaif.constitution.model import CHECKED_FIELDS, Principle
from rlaif.constitution.rules import apply_check
from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Judgement, Prompt, Status
from rlaif.engines.base import Capability
from rlaif.judges.base import Answer, Call, Verdict, call_id, make_judgement
from rlaif.judges.common import (
    JudgeBase,
    JudgeInputs,
    by_principle,
    hash_judge,
    named_principles,
    question_hashes,
    usable,
)


class RulesJudge(JudgeBase):
    """The constitution's `check`s, run as programs."""

    kind: Literal["rules"]
    id: StepId = "rules"

    def rules(self, inputs: JudgeInputs) -> list[str]:
        """The rules of the checks."""
        return [p.check.rule for p in self.build_judge(inputs).principles if p.check is not None]

    def build_judge(self, inputs: JudgeInputs) -> Rules:
        """The judge of the spec. Raises ConfigError when no principle has a `check`."""
        named = named_principles(self, inputs.constitution)
        for principle in named or []:
            if principle.check is None:
                raise ConfigError(
                    f"judge {self.id}: principle {principle.id!r} has no `check`, so no program "
                    "can judge it"
                )
        every = inputs.constitution.principles if inputs.constitution is not None else ()
        principles = named if named is not None else [p for p in every if p.check is not None]
        if not principles:
            raise ConfigError(
                f"judge {self.id}: kind rules runs the `check`s of a constitution, and there is "
                "none"
            )
        # What a principle says is for people here: rewording it changes no verdict.
        return Rules(
            self.id,
            hash_judge(self, principles, fields=CHECKED_FIELDS),
            question_hashes(self, principles, fields=CHECKED_FIELDS),
            tuple(principles),
        )


@dataclass(frozen=True, slots=True)
class Rules:
    """`score` is the rule's value, on [0, 1]; not_applicable where it has none for the prompt."""

    id: str
    judge_hash: str
    questions: Mapping[str | None, str]
    principles: tuple[Principle, ...]
    needs: frozenset[Capability] = frozenset()
    comparative: bool = False

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call without a request per completion and principle; `seed` changes nothing."""
        return [
            Call(call_id(self.questions[p.id], [completion], p.id), prompt, (completion,), p.id)
            for completion in usable(completions)
            for p in self.principles
        ]

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement; `result` is None."""
        principle = by_principle(self.principles)[call.principle or ""]
        text = call.shown[0].text
        score = None
        if principle.check is not None and principle.applies(call.prompt):
            score = apply_check(principle.check.rule, principle.check.params, call.prompt, text)
        status: Status = "ok" if score is not None else "not_applicable"
        return [make_judgement(self, call, annotator_id, Verdict(status, score), "rule")]
