"""A jury: several judges, each with a model of its own if wished, and one verdict.

After PoLL (2404.18796, section 2): scores are averaged, or each juror votes on each pair. Measured
accuracies become weights ln(a / (1 - a)), which is the best weighting of independent voters
(Nitzan and Paroush, 1982); a juror at or below chance weighs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, field_validator, model_validator

from rlaif.config.base import Fraction, StepId
from rlaif.constitution.model import load_constitution
from rlaif.constitution.textstats import is_blank
from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Judgement, Prompt, Status, content_hash
from rlaif.core.resources import find
from rlaif.core.store import read_json
from rlaif.core.yamlio import suggest
from rlaif.engines.base import Capability
from rlaif.judges.base import (
    Answered,
    Call,
    Judge,
    Verdict,
    call_id,
    compares_judgements,
    most_calls,
    roles_of,
    verdicts_of,
)
from rlaif.judges.build import JudgeStep, build_judge
from rlaif.judges.common import JudgeBase, JudgeInputs, usable_pairs
from rlaif.judges.composed import (
    all_needs,
    annotators,
    behind,
    completions_of,
    conclude_verdict,
    follow_within,
    missing_status,
    placed,
    seen_together,
    under,
)
from rlaif.preferences.aggregate import Scores, combine, compared_scores, weighted_mean, weights_of

ALIKE = "alike"
"""The role of the one call of a vote on an answer beside itself: nobody is asked."""

SUREST = 0.99
"""The highest accuracy that is believed: a perfect record on few pairs must not outvote all."""


class JuryJudge(JudgeBase):
    """Several judges and one verdict: the mean of their scores, or a vote on each pair."""

    kind: Literal["jury"]
    id: StepId = "jury"
    of: Annotated[list[JudgeStep], Field(min_length=1)]
    pool: Literal["mean", "vote"] = "mean"
    weights: dict[str, NonNegativeFloat] | None = None
    accuracy: dict[str, Fraction] | str | None = Field(
        None, description="Measured accuracies, or the output file of `judge-bench --json`."
    )
    missing: Literal["drop", "renormalise"] = "renormalise"

    @field_validator("of")
    @classmethod
    def _ids_differ(cls, members: list[Any]) -> list[Any]:
        ids = [member.id for member in members]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"the jurors' ids must differ; {twice} is used twice (set `id:`)")
        return members

    @model_validator(mode="after")
    def _one_weighting(self) -> JuryJudge:
        if self.weights is not None and self.accuracy is not None:
            raise ValueError("give `weights` or `accuracy`, not both")
        if self.principles is not None:
            raise ValueError("`principles` belongs to the jurors; set it there")
        return self

    def judges_within(self) -> dict[str, JudgeBase]:
        """The jurors."""
        return {juror.id: juror for juror in self.of}

    def build_judge(self, inputs: JudgeInputs) -> Jury:
        """The jury of the spec. Raises ConfigError for weights that name no juror."""
        members = tuple(
            build_judge(juror, inputs.constitution, inputs.beside, inputs.thinking)
            for juror in self.of
        )
        stranger = next((m for m in members if compares_judgements(m)), None)
        if stranger is not None:
            raise ConfigError(
                f"judge {self.id}: juror {stranger.id!r} compares judgements, and a jury judges "
                "answers; run it as a judge step of its own"
            )
        weights = _juror_weights(self, inputs.beside)
        main = inputs.constitution
        principle_weights = {p.id: p.weight for p in main.principles} if main else {}
        for juror in self.of:
            if juror.constitution is not None:
                own = load_constitution(find(juror.constitution, inputs.beside))
                principle_weights |= {f"{juror.id}/{p.id}": p.weight for p in own.principles}
        # Jurors in another order are the same jury.
        hashes = sorted((m.id, m.judge_hash) for m in members)
        options = [self.pool, self.missing, weights, principle_weights]
        return Jury(
            id=self.id,
            judge_hash=content_hash("jury", self.id, hashes, options),
            members=members,
            weights=weights,
            pool=self.pool,
            missing=self.missing,
            principle_weights=principle_weights,
        )


@dataclass(frozen=True, slots=True)
class Jury:
    """With `pool` mean: `score` is the jurors' weighted mean, one judgement per completion. With
    vote: `prob_first` is the share of the weight that ranks the first higher, one judgement per
    pair; half goes each way where a juror ranks both alike. `distribution` holds each juror's."""

    id: str
    judge_hash: str
    members: tuple[Judge, ...]
    weights: Mapping[str, float]
    pool: Literal["mean", "vote"]
    missing: Literal["drop", "renormalise"]
    principle_weights: Mapping[str, float]

    @property
    def comparative(self) -> bool:
        """Whether the verdict is about pairs."""
        return self.pool == "vote"

    @property
    def roles(self) -> Mapping[str, frozenset[Capability]]:
        """The jurors' models, by juror and role."""
        return {
            f"{m.id}/{role}": needs for m in self.members for role, needs in roles_of(m).items()
        }

    @property
    def needs(self) -> frozenset[Capability]:
        """What the jurors' models must be able to do, taken together."""
        return all_needs(self.roles)

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """The jurors' calls; none of them for a vote on an answer beside itself, which is a tie."""
        # The jurors would be asked about one text twice, and the answer is known.
        pairs = usable_pairs(completions) if self.comparative else []
        if pairs and pairs[0][0] is pairs[0][1]:
            name = call_id(self.judge_hash, pairs[0], None)
            return [Call(name, prompt, pairs[0], role=ALIKE)]
        return [
            call for m in self.members for call in placed(m.id, m.calls(prompt, completions, seed))
        ]

    def follow(
        self, calls: Sequence[Call], answers: Mapping[str, Answered], seed: int
    ) -> list[Call]:
        """What jurors ask further."""
        return [c for m in self.members for c in follow_within(m.id, m, calls, answers, seed)]

    def most_calls(self, calls: Sequence[Call]) -> int:
        """The jurors' sum."""
        return sum(most_calls(m, under(m.id, calls)) for m in self.members)

    def conclude(self, calls: Sequence[Call], answers: Mapping[str, Answered]) -> list[Judgement]:
        """One judgement per completion, or per pair of them."""
        alike = [call for call in calls if call.role == ALIKE]
        if alike:
            who = annotators(alike, answers, self.id)
            tie = Verdict("tie", prob_first=0.5)
            return [conclude_verdict(self, alike, c.shown, who, tie) for c in alike]
        read = {m.id: verdicts_of(m, under(m.id, calls), answers) for m in self.members}
        # A meta-judge shows judgements as if they were answers; no verdict is about them.
        about = {name for rows in read.values() for j in rows for name in j.shown}
        completions = [c for c in completions_of(calls) if c.completion_id in about]
        blank = {c.completion_id for c in completions if is_blank(c.text)}
        renormalise = self.missing == "renormalise"
        scores = {
            juror: compared_scores(
                rows, weights_of(juror, self.principle_weights), renormalise, blank
            )
            for juror, rows in read.items()
        }
        every = [j for rows in read.values() for j in rows]
        status = missing_status(j.status for j in every if j.score is None and j.prob_first is None)
        verdicts: list[tuple[Sequence[Completion], Verdict]]
        if self.pool == "mean":
            means = combine(scores, self.weights, self.missing)
            verdicts = [([c], _average_scores(c, scores, means, status)) for c in completions]
        else:
            pairs = combinations(completions, 2)
            verdicts = [(pair, self._count_votes(pair, scores, status)) for pair in pairs]
        who, among = annotators(calls, answers, self.id), seen_together(calls)
        return [
            conclude_verdict(
                self,
                calls,
                about,
                who,
                verdict,
                among=among,
                rests_on=_find_calls_behind(every, about, calls),
            )
            for about, verdict in verdicts
        ]

    def _count_votes(
        self, pair: Sequence[Completion], scores: Mapping[str, Scores], status: Status
    ) -> Verdict:
        votes = {}
        for juror, row in scores.items():
            one, other = (row.get(c.completion_id) for c in pair)
            if one is not None and other is not None:
                votes[juror] = 0.5 if one == other else float(one > other)
        # A juror that weighs nothing may be missing.
        wanted = [m for m, weight in self.weights.items() if weight > 0]
        whole = self.missing == "renormalise" or all(m in votes for m in wanted)
        prob = weighted_mean((v, self.weights[m]) for m, v in votes.items()) if whole else None
        if prob is not None:
            status = "tie" if prob == 0.5 else "ok"
        return Verdict(status, prob_first=prob, distribution=votes or None)


def _average_scores(
    completion: Completion, scores: Mapping[str, Scores], means: Scores, status: Status
) -> Verdict:
    name = completion.completion_id
    mean = means.get(name)
    own = {m: s for m, row in scores.items() if (s := row.get(name)) is not None}
    return Verdict(status if mean is None else "ok", mean, distribution=own or None)


def _find_calls_behind(
    read: Sequence[Judgement], about: Sequence[Completion], calls: Sequence[Call]
) -> list[str]:
    """The calls that the jurors' judgements of these completions rest on."""
    names = {c.completion_id for c in about}
    return behind((j for j in read if not names.isdisjoint(j.shown)), calls)


def accuracy_weight(accuracy: float) -> float:
    """ln(a / (1 - a)), at least 0, for an accuracy on [0, 1]; above 0.99 it grows no more."""
    sure = min(accuracy, SUREST)
    return max(0.0, math.log(sure) - math.log(1 - sure)) if sure > 0 else 0.0


def _juror_weights(spec: JuryJudge, beside: Path | None) -> dict[str, float]:
    ids = [juror.id for juror in spec.of]
    if spec.weights is not None:
        given = spec.weights
    elif spec.accuracy is not None:
        known = spec.accuracy
        if isinstance(known, str):
            known = _read_accuracies(known, beside)
        lacking = sorted(set(ids) - set(known))
        if lacking:
            raise ConfigError(f"judge {spec.id}: `accuracy` lacks juror {lacking[0]!r}")
        given = {name: accuracy_weight(known[name]) for name in known}
    else:
        given = dict.fromkeys(ids, 1.0)
    strangers = sorted(set(given) - set(ids))
    # A file of judge-bench may have judges that do not sit here.
    if strangers and not isinstance(spec.accuracy, str):
        hint = suggest(strangers[0], ids)
        raise ConfigError(f"judge {spec.id}: {strangers[0]!r} is no juror{hint}")
    weights = {name: given.get(name, 1.0) for name in ids}
    if not any(weights.values()):
        raise ConfigError(
            f"judge {spec.id}: no juror weighs anything (an accuracy of 0.5 or less weighs 0)"
        )
    return weights


def _read_accuracies(name: str, beside: Path | None) -> dict[str, float]:
    """Judge id to agreement, from the file that `judge-bench --json` wrote."""
    path = find(name, beside)
    data = read_json(path, "Write it anew with judge-bench --json.") or {}
    judges = data.get("judges")
    rows = judges if isinstance(judges, dict) else {}
    measured = {n: r.get("agreement") for n, r in rows.items() if isinstance(r, dict)}
    # A judge that decided no pair has none.
    found = {name: share for name, share in measured.items() if isinstance(share, int | float)}
    if not found:
        raise ConfigError(
            "no accuracies: expected {judges: {ID: {agreement: FRACTION}}}, as judge-bench --json "
            "writes",
            path,
        )
    return found
