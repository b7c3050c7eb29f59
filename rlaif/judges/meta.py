"""A judge of judgements: several of one answer are compared, and count by their Elo.

After meta-rewarding (2407.19594, section 2.3), which trains on the best and the worst judgement;
here the answer's score is the mean of its judgements' scores under softmax(Elo), so that equal
judgements count alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlaif.config.base import StepId
from rlaif.core.errors import ConfigError
from rlaif.core.groups import group_by
from rlaif.core.records import Completion, Judgement, Prompt, content_hash
from rlaif.engines.base import Capability
from rlaif.judges.base import Answered, Call, Judge, Verdict, most_calls, roles_of, verdicts_of
from rlaif.judges.build import JudgeStep, build_judge
from rlaif.judges.common import JudgeBase, JudgeInputs, ModelJudge, WritingJudge
from rlaif.judges.composed import (
    all_needs,
    annotators,
    asked_ids,
    behind,
    conclude_verdict,
    follow_within,
    missing_status,
    placed,
    seen_together,
    under,
)
from rlaif.judges.pairwise import Pairwise, PairwiseJudge
from rlaif.metrics.ranking import fit_strengths

Key = tuple[str, str | None]
"""An answer and the principle by which it was judged."""

PRIOR = 0.1
"""Precision of the prior on an Elo (natural-log units): it keeps an unbeaten judgement finite, and
a few comparisons from deciding alone."""


def build_comparer(
    spec: ModelJudge, first: list[str], second: list[str], inputs: JudgeInputs
) -> Pairwise:
    """The comparison of two judgements of one answer, in both orders, which is answered by one of
    the labels `first` and `second`."""
    return PairwiseJudge(
        kind="pairwise",
        id=spec.id,
        by=spec.by,
        template=spec.template or "prompts/judges/meta.j2",
        first_labels=first,
        second_labels=second,
    ).build_judge(replace(inputs, constitution=None))


class MetaJudge(ModelJudge):
    """A judge of judgements: those of `judge` are compared, ranked by Elo, and the best counts."""

    kind: Literal["meta"]
    id: StepId = "meta"
    judge: JudgeStep
    first_labels: list[str] = ["1", " 1"]
    second_labels: list[str] = ["2", " 2"]

    def judges_within(self) -> dict[str, JudgeBase]:
        """The judge whose judgements it compares."""
        return {"judge": self.judge}

    def build_judge(self, inputs: JudgeInputs) -> Meta:
        """The judge of the spec. Raises ConfigError when there would be nothing to compare."""
        inner = build_judge(self.judge, inputs.constitution, inputs.beside, inputs.thinking)
        if self.principles is not None:
            raise ConfigError(f"judge {self.id}: `principles` belongs to its `judge`; set it there")
        own = self.judge
        writes = isinstance(own, WritingJudge) and own.writes and own.samples > 1
        if inner.comparative or not writes:
            raise ConfigError(
                f"judge {self.id}: a meta-judge compares written judgements of one answer: its "
                "`judge` must score single answers, write text, and have `samples` of 2 or more"
            )
        comparer = build_comparer(self, self.first_labels, self.second_labels, inputs)
        name = content_hash("meta", self.id, inner.judge_hash, comparer.judge_hash)
        return Meta(self.id, name, inner, comparer)


@dataclass(frozen=True, slots=True)
class Meta:
    """`score` is the weighted mean of the scores of an answer's judgements, on [0, 1];
    `distribution` holds each one's score and Elo, `rationale` the text of the best."""

    id: str
    judge_hash: str
    inner: Judge
    comparer: Pairwise
    comparative: bool = False

    @property
    def roles(self) -> Mapping[str, frozenset[Capability]]:
        """The meta-judge's model, and those of the judge within."""
        within = {f"judge/{role}": needs for role, needs in roles_of(self.inner).items()}
        return {"by": self.comparer.needs} | within

    @property
    def needs(self) -> frozenset[Capability]:
        """What the models must be able to do, taken together."""
        return all_needs(self.roles)

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """The calls of the judge within."""
        return placed("judge", self.inner.calls(prompt, completions, seed))

    def follow(
        self, calls: Sequence[Call], answers: Mapping[str, Answered], seed: int
    ) -> list[Call]:
        """What the judge within asks further; then the comparisons of its judgements."""
        further = follow_within("judge", self.inner, calls, answers, seed)
        if further or any(call.role == "by" for call in calls):
            return further
        made = []
        for group in self._group_judgements(calls, answers).values():
            subject = next(
                c for call in calls for c in call.shown if c.completion_id == group[0].subject
            )
            texts = comparable(group)
            if len(texts) > 1:
                made += self.comparer.calls(with_answer(calls[0].prompt, subject), texts, seed)
        return made

    def most_calls(self, calls: Sequence[Call]) -> int:
        """Those of the judge within, and both orders of every two judgements of an answer."""
        own = under("judge", calls)
        groups = Counter((c.shown[0].completion_id, c.principle) for c in own)
        return most_calls(self.inner, own) + sum(k * (k - 1) for k in groups.values())

    def _group_judgements(
        self, calls: Sequence[Call], answers: Mapping[str, Answered]
    ) -> dict[Key, list[Judgement]]:
        read = verdicts_of(self.inner, under("judge", calls), answers)
        return group_by(read, lambda j: (j.subject, j.principle))

    def conclude(self, calls: Sequence[Call], answers: Mapping[str, Answered]) -> list[Judgement]:
        """One judgement per completion and principle."""
        compared = [call for call in calls if call.role == "by"]
        who, among = annotators(calls, answers, self.id), seen_together(under("judge", calls))
        subjects = {c.completion_id: c for call in calls for c in call.shown}
        found = []
        for (subject, principle), group in self._group_judgements(calls, answers).items():
            valued = [j for j in group if j.score is not None]
            places = {j.judgement_id: index for index, j in enumerate(valued)}
            own = [c for c in compared if c.shown[0].completion_id in places]
            verdict = Verdict(missing_status(j.status for j in group))
            if valued:
                compared_here = [
                    (places[j.shown[0]], places[j.shown[1]], j.prob_first)
                    for j in verdicts_of(self.comparer, own, answers)
                    if j.prob_first is not None
                ]
                verdict = _weigh_judgements(valued, compared_here)
            found.append(
                conclude_verdict(
                    self,
                    calls,
                    [subjects[subject]],
                    who,
                    verdict,
                    principle=principle,
                    among=among,
                    rests_on=[*behind(group, calls), *asked_ids(own)],
                )
            )
        return found


def _weigh_judgements(
    valued: Sequence[Judgement], compared: Sequence[tuple[int, int, float]]
) -> Verdict:
    """The mean of the judgements' scores, weighed by the Elo that the comparisons give."""
    ratings = rate_judgements(compared, len(valued), PRIOR)
    shares = np.exp(ratings - ratings.max())
    scores = np.array([j.score for j in valued], dtype=float)
    kept = {f"score/{j.sample_index}": float(s) for j, s in zip(valued, scores, strict=True)}
    kept |= {f"elo/{j.sample_index}": float(e) for j, e in zip(valued, ratings, strict=True)}
    return Verdict(
        "ok",
        score=min(1.0, max(0.0, float(shares @ scores / shares.sum()))),
        distribution=kept,
        rationale=_text_of(valued[int(np.argmax(ratings))]) or None,
    )


def rate_judgements(
    compared: Sequence[tuple[int, int, float]], count: int, prior: float
) -> NDArray[np.float64]:
    """Strengths (count,) in natural units of log-odds, of mean 0, from comparisons as `fair_wins`
    takes them; `prior` is the precision about 0."""
    wins, pairs = fair_wins(compared)
    strengths: NDArray[np.float64] = fit_strengths(wins[None], pairs, count, prior)[0]
    return strengths


def fair_wins(
    verdicts: Sequence[tuple[int, int, float]],
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Wins (E,) and who won against whom (E, 2), each win weighted by its slot.

    A verdict is (shown first, shown second, probability that the first wins). A win in slot 1
    weighs win_2 / (win_1 + win_2) and one in slot 2 the rest, where win_k are the wins in slot k: a
    meta-judge that always takes one slot says nothing (2407.19594, section 2.3).
    """
    shown = np.asarray([(i, j) for i, j, _ in verdicts], dtype=np.intp).reshape(-1, 2)
    first = np.asarray([prob for _, _, prob in verdicts], dtype=np.float64)
    second = 1.0 - first
    count = max(1, first.size)
    wins = np.concatenate([first * (second.sum() / count), second * (first.sum() / count)])
    return wins, np.concatenate([shown, shown[:, ::-1]])


def _text_of(judgement: Judgement) -> str:
    return (judgement.raw or judgement.rationale or "").strip()


def comparable(judgements: Sequence[Judgement]) -> list[Completion]:
    """The texts of judgements that have a score, as what can be compared."""
    return [_as_completion(j) for j in judgements if j.score is not None and _text_of(j)]


def _as_completion(judgement: Judgement) -> Completion:
    """A judgement's text as something that can be compared."""
    text = _text_of(judgement)
    return Completion(
        completion_id=judgement.judgement_id,
        prompt_id=judgement.prompt_id,
        sample_index=judgement.sample_index,
        messages=[{"role": "assistant", "content": text}],
        model=judgement.annotator_id,
        weights_hash="",
        sampling={},
        finish_reason="stop",
        digest=content_hash(text),
    )


def with_answer(prompt: Prompt, answer: Completion) -> Prompt:
    """The prompt with the judged answer as its last turn."""
    messages = [*prompt.messages, *answer.messages[-1:]]
    return Prompt(prompt.prompt_id, messages, prompt.source, prompt.tags, prompt.reference)
