"""A program that marks answers to a judge's questions: 1 where the verdict in an answer is right,
0 where it is wrong or cannot be read.

This is the reward of judges that are trained (J1, arXiv 2505.10320): of a comparison, that the
verdict is right, or that it is right in both orders of the answers; of scores, that the better
answer's is strictly higher.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec import structs
from pydantic import Field

from rlaif.config.base import StepId
from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Judgement, Prompt, content_hash
from rlaif.core.yamlio import suggest
from rlaif.engines.base import Capability
from rlaif.judges.base import Answer, Call, Case, Judge, Verdict, call_id, make_judgement
from rlaif.judges.build import build_judge
from rlaif.judges.common import JudgeBase, JudgeInputs, usable
from rlaif.judges.posed import (
    HIGHER,
    LOWER,
    named_label,
    read_written,
    said_label,
    scores_alone,
    unreadable,
    verifies,
)

NO_PARTNER = "the other question of its group has no answer of the same index"


class VerdictMarkJudge(JudgeBase):
    """Whether an answer to a question of another judge gives the right verdict, the prompt's
    `reference`: 1 right, 0 wrong or unreadable. A program, which asks no model."""

    kind: Literal["verdict"]
    id: StepId = "verdict"
    of: StepId = Field(description="The judge whose questions are answered; it writes its verdict.")
    both_orders: bool = Field(
        False,
        description="Right only where the answers of the same index to both orders of a pair are.",
    )

    def build_judge(self, inputs: JudgeInputs) -> VerdictCheck:
        """The judge of the spec. Raises ConfigError where `of` names no judge whose verdicts can be
        read in a text."""
        self.refuse_principles("it compares with the prompt's reference")
        others = {name: spec for name, spec in inputs.judges.items() if name != self.id}
        if self.of not in others:
            hint = suggest(self.of, sorted(others))
            raise ConfigError(f"judge {self.id}: of: {self.of!r} is no other judge here{hint}")
        spec = others[self.of]
        judge = build_judge(
            spec, inputs.constitution, inputs.beside, inputs.thinking, inputs.judges
        )
        fault = unreadable(judge)
        if fault is not None:
            raise ConfigError(f"judge {self.id}: of: judge {self.of!r} {fault}")
        if self.both_orders and not judge.comparative:
            together = "" if verifies(judge) else ", and the scores of a pair are judged together"
            raise ConfigError(
                f"judge {self.id}: `both_orders` has no effect: judge {self.of!r} is asked about "
                f"each answer alone{together}; leave it out"
            )
        digest = content_hash("verdict", self.id, self.both_orders, judge.judge_hash)
        return VerdictCheck(self.id, digest, judge, self.both_orders)


@dataclass(frozen=True, slots=True)
class VerdictCheck:
    """`score` is 1 for the right verdict, else 0; not_applicable without a `reference` in the
    judge's language, and failed where an answer beside it is missing that decides."""

    id: str
    judge_hash: str
    of: Judge
    both_orders: bool
    needs: frozenset[Capability] = frozenset()
    comparative: bool = False

    @property
    def grouped(self) -> bool:
        """Whether answers to other prompts of the group decide too."""
        return self.both_orders or scores_alone(self.of)

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call without a request per completion; `seed` changes nothing."""
        return self.calls_beside(prompt, completions, (), seed)

    def calls_beside(
        self, prompt: Prompt, completions: Sequence[Completion], beside: Sequence[Case], seed: int
    ) -> list[Call]:
        """One call per completion, with the answers of its index to the prompts `beside` it."""
        others = [(other, _by_place(answers)) for other, answers in beside] if self.grouped else []
        made = []
        for place, completion in _by_place(completions).items():
            found = [(other, answers[place]) for other, answers in others if place in answers]
            shown = (completion, *(answer for _, answer in found))
            # An answer that is lacking may come later, and then it is another question.
            name = call_id(content_hash(self.judge_hash, len(others)), shown, None)
            prompts = tuple(other for other, _ in found)
            made.append(Call(name, prompt, shown, beside=prompts, lacking=len(others) - len(found)))
        return made

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement; `result` is None."""
        verdict = self._mark_scores(call) if scores_alone(self.of) else self._mark_choices(call)
        made = make_judgement(self, call, annotator_id, verdict, "rule", call.shown[0])
        return [structs.replace(made, error=NO_PARTNER) if verdict.status == "failed" else made]

    def _mark_choices(self, call: Call) -> Verdict:
        """Whether the verdict is right, and with `both_orders` that of every prompt beside it."""
        marks: list[bool] = []
        said = []
        for prompt, answer in zip((call.prompt, *call.beside), call.shown, strict=True):
            right = named_label(self.of, prompt.reference)
            if right is None:
                return Verdict("not_applicable")
            found = said_label(self.of, prompt, answer)
            marks.append(found == right)
            said.append(f"{found or 'unreadable'}, right is {right}")
        if self.both_orders and all(marks):
            if call.lacking:
                return Verdict("failed")
            if not call.beside:
                return Verdict("not_applicable")
        return Verdict("ok", score=float(all(marks)), rationale="; in the other order ".join(said))

    def _mark_scores(self, call: Call) -> Verdict:
        """Whether the better answer's score is strictly higher: one mark for both."""
        scores: dict[str, float | None] = {}
        for prompt, answer in zip((call.prompt, *call.beside), call.shown, strict=True):
            if prompt.reference not in (HIGHER, LOWER):
                return Verdict("not_applicable")
            scores[prompt.reference] = read_written(self.of, prompt, answer).score
        if None in scores.values():
            return Verdict("ok", score=0.0, rationale="no score can be read")
        if len(scores) < 2:
            lacking = Verdict("failed")
            return lacking if call.lacking else Verdict("not_applicable")
        higher, lower = scores[HIGHER], scores[LOWER]
        assert higher is not None
        assert lower is not None
        said = f"the better answer {higher:g}, the other {lower:g}"
        return Verdict("ok", score=float(higher > lower), rationale=said)


Place = tuple[int, str, int]


def _by_place(completions: Sequence[Completion]) -> dict[Place, Completion]:
    """The usable completions by sample index and model, and by their order where several steps have
    sampled that one."""
    found: dict[Place, Completion] = {}
    counts: dict[tuple[int, str], int] = defaultdict(int)
    for one in usable(completions):
        own = one.sample_index, one.model
        found[*own, counts[own]] = one
        counts[own] += 1
    return found
