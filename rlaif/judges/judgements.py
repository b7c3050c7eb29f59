"""A judge whose subjects are another judge's judgements: of one answer, in both orders.

The meta-judge of Meta-Rewarding (arXiv 2407.19594, section 2.3). `pair` makes preferences of what
it says, from which a judge learns. Which of two judgements wins is 1 or 0; a tie counts for
neither. The question, and what is compared, are those of `meta`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from msgspec.structs import replace
from pydantic import Field

from rlaif.config.base import StepId
from rlaif.core.groups import group_by
from rlaif.core.records import Completion, Judgement, Prompt, SubjectKind, content_hash
from rlaif.engines.base import Capability, GenerateRequest
from rlaif.judges.base import Answer, Call, Case, Judge, is_staged
from rlaif.judges.common import JudgeBase, JudgeInputs, ModelJudge
from rlaif.judges.meta import build_comparer, comparable, rate_judgements, with_answer
from rlaif.judges.pairwise import Pairwise
from rlaif.preferences.verdict_pairs import spread_of

PRIOR = 1e-4
"""Precision of the prior on a strength: enough to keep a judgement finite that wins every
comparison, and too little to change the order of the others."""


class JudgementsJudge(ModelJudge):
    """Compares judgements of one answer, written by another judge. Only `pair` reads what it
    says."""

    kind: Literal["judgements"]
    id: StepId = "judgements"
    of: StepId
    first_labels: list[str] = ["1", " 1"]
    second_labels: list[str] = ["2", " 2"]
    pick: Literal["highest_variance", "all"] = Field(
        "all",
        description="The judgements of each prompt's answer on whose scores they differ most, or "
        "those of all answers.",
    )

    def build_judge(self, inputs: JudgeInputs) -> Judgements:
        """The judge of the spec."""
        self.refuse_principles("it compares judgements, by its template alone")
        comparer = build_comparer(self, self.first_labels, self.second_labels, inputs)
        return Judgements(self.id, comparer, self.pick == "highest_variance")


@dataclass(frozen=True, slots=True)
class Judgements:
    """`prob_first` is the share of label probability on the judgement shown first, `shown` are
    judgement ids. `widest`: of each prompt those of one answer are compared."""

    id: str
    comparer: Pairwise
    widest: bool = False
    comparative: ClassVar[bool] = True
    subject_kind: ClassVar[SubjectKind] = "judgement"

    @property
    def judge_hash(self) -> str:
        """That of the comparison, and of what is compared."""
        whole = self.comparer.judge_hash
        return content_hash(whole, "widest") if self.widest else whole

    @property
    def needs(self) -> frozenset[Capability]:
        """Those of the comparison."""
        return self.comparer.needs

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """Both orders of every two of the texts: judgements of the answer with which the prompt
        ends (see `group_judgements`)."""
        return self.comparer.calls(prompt, completions, seed)

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement, about the text shown first."""
        made = self.comparer.read(call, result, annotator_id)
        return [
            replace(j, subject_kind=self.subject_kind, judge_hash=self.judge_hash) for j in made
        ]


def group_judgements(
    prompt: Prompt,
    completions: Sequence[Completion],
    judgements: Sequence[Judgement],
    widest: bool = False,
) -> list[Case]:
    """What is compared of one prompt: for each answer and principle the prompt with that answer as
    its last turn, and the judgements that have a score, where there are two or more. `widest`: of
    the answer and principle alone whose scores have the largest variance, the first of several."""
    subjects = {c.completion_id: c for c in completions}
    groups = group_by(judgements, lambda j: (j.subject, j.principle or ""))
    ordered = sorted(groups.items())
    if widest and ordered:
        ordered = [max(ordered, key=lambda item: spread_of(j.score for j in item[1]))]
    found: list[Case] = []
    for (subject, _), group in ordered:
        distinct = {j.judgement_id: j for j in group}
        texts = comparable([distinct[name] for name in sorted(distinct)])
        if len(texts) > 1 and subject in subjects:
            found.append((with_answer(prompt, subjects[subject]), texts))
    return found


def compute_strengths(names: Sequence[str], comparisons: Sequence[Judgement]) -> dict[str, float]:
    """The strength of each of the judgements `names` on one question, in natural units of log-odds.

    A comparison is won (more than half), lost or neither: a tie and a verdict that is missing
    count for neither side. A win in slot 1 weighs win_2 / (win_1 + win_2), one in slot 2 the rest;
    the strengths are those of greatest likelihood (arXiv 2407.19594, section 2.3).
    """
    places = {name: index for index, name in enumerate(names)}
    won = [
        (places[j.shown[0]], places[j.shown[1]], float(j.prob_first > 0.5))
        for j in comparisons
        if j.prob_first is not None
        and j.prob_first != 0.5
        and len(j.shown) == 2
        and all(name in places for name in j.shown)
    ]
    ratings = rate_judgements(won, len(names), PRIOR)
    return {name: float(ratings[index]) for name, index in places.items()}


def writes_verdicts(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Completion]) -> bool:
    """Whether a model writes the judge's verdict in the answer to one question: then there is a
    text to train on. Seen by what it asks about `answers` to some of the prompts."""
    return not is_staged(judge) and any(
        isinstance(call.request, GenerateRequest) and call.then is None
        for prompt in prompts
        for call in judge.calls(prompt, answers, 0)
    )


def advise_writing(spec: JudgeBase, judge: Judge) -> str:
    """Why a judge's verdicts are no written texts, and what to set."""
    if is_staged(judge):
        within = " or ".join(sorted(one.id for one in spec.judges_within().values()))
        which = f": take {within} as a judge of its own" if within else ""
        return f"its verdicts rest on several answers, of which none is the verdict{which}"
    if getattr(spec, "by", None) is None:
        return "it asks no model"
    if getattr(spec, "expected", False):
        more = " and `cot: false`" if getattr(spec, "cot", False) else ""
        return f"it reads the probabilities of levels: set `expected: false`{more}"
    if hasattr(spec, "verdict"):
        more = " and `cot: false`" if getattr(spec, "cot", False) else ""
        return f"it reads the probabilities of labels: set `verdict: written`{more}"
    return (
        "it reads the probabilities of labels: take a kind that writes its verdict, such as "
        "rating, additive, prometheus or pairwise with `verdict: written`"
    )


def samples_of(calls: Sequence[Call]) -> Mapping[tuple[str, str | None], int]:
    """How many judgements each answer gets by principle, where each call shows one answer."""
    groups = group_by(calls, lambda c: (c.shown[0].completion_id, c.principle))
    return {key: len(group) for key, group in groups.items()}
