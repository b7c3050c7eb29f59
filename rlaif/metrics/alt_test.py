"""The alternative annotator test: may a judge stand in for a person? Pure functions.

The procedure of Calderon, Reichart and Dror (arXiv 2501.10970, section 3). Each person j is left
out in turn: on the items that j labelled, the judge and j are both scored by the share of the
*other* people who gave the same label. With W_f = 1 where the judge scores at least as high as j
and W_h = 1 where j scores at least as high as the judge, a one-sided paired t test asks whether the
mean of W_h - W_f lies below epsilon. Epsilon is what a judge costs less than a person: the larger,
the easier to pass. Benjamini and Yekutieli's procedure (2001) over the people gives the winning
rate omega; the judge passes where omega is 1/2 or more. The average advantage probability rho, the
mean over people of the mean of W_f, compares judges.

Items of one prompt are averaged first, so that prompts are what the test counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from rlaif.metrics.claims import ALPHA, benjamini_yekutieli
from rlaif.metrics.metrics import per_prompt
from rlaif.metrics.weighted import Floats

EPSILONS = {"experts": 0.2, "skilled annotators": 0.15, "crowd workers": 0.1}
"""What the paper advises, by who the people are."""
MIN_PEOPLE = 3
MIN_T = 30
"""Fewest prompts for the t test; below, Wilcoxon's signed-rank test takes its place."""
MIN_TESTED = 6
"""With fewer prompts no signed-rank test can reject."""
PASS = 0.5


@dataclass(frozen=True, slots=True)
class VotedItem:
    """What people said of one pair, by their names, and the judge: P(first is better) each."""

    prompt_id: str
    judge: float
    votes: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PersonTest:
    """The judge against one person on `prompts` prompts: the means of W_f (`judge_at_least`) and of
    W_h (`person_at_least`), the one-sided p, and whether the person is outdone after correction."""

    person: str
    prompts: int
    judge_at_least: float
    person_at_least: float
    test: str
    p: float
    outdone: bool


@dataclass(frozen=True, slots=True)
class AltTest:
    """The outcome. `skipped` are the people with fewer than `MIN_TESTED` prompts, and how many they
    have; they are in no rate. Where the test cannot be made, `refusal` says why and the rates are
    None."""

    epsilon: float
    people: Sequence[PersonTest]
    skipped: Mapping[str, int]
    winning_rate: float | None
    advantage: float | None
    passed: bool | None
    refusal: str | None = None


def run_alt_test(items: Iterable[VotedItem], epsilon: float) -> AltTest:
    """The test of a judge on items with votes of two people or more; others are left out."""
    usable = [item for item in items if len(item.votes) >= 2]
    people = sorted({name for item in usable for name in item.votes})
    differences = {name: _leave_out(usable, name) for name in people}
    skipped = {n: len(d) for n, d in differences.items() if len(d) < MIN_TESTED}
    tested = [name for name in people if name not in skipped]
    refusal = _refuse(len(usable), people, tested)
    if refusal is not None:
        return AltTest(epsilon, [], skipped, None, None, None, refusal)
    p = {name: p_below(_column(differences[name], 1), epsilon) for name in tested}
    adjusted = benjamini_yekutieli(p)
    rows = [
        PersonTest(
            person=name,
            prompts=len(differences[name]),
            judge_at_least=float(_column(differences[name], 0).mean()),
            person_at_least=float(_column(differences[name], 2).mean()),
            test="t" if len(differences[name]) >= MIN_T else "signed rank",
            p=p[name],
            outdone=adjusted[name] <= ALPHA,
        )
        for name in tested
    ]
    rate = sum(row.outdone for row in rows) / len(rows)
    advantage = math.fsum(row.judge_at_least for row in rows) / len(rows)
    return AltTest(epsilon, rows, skipped, rate, advantage, rate >= PASS)


def _refuse(usable: int, people: Sequence[str], tested: Sequence[str]) -> str | None:
    if not usable:
        return "no pair has the votes of two people and a verdict of the judge"
    if len(people) < MIN_PEOPLE:
        return (
            f"{len(people)} people voted on pairs that another one voted on; the test needs "
            f"{MIN_PEOPLE}"
        )
    if len(tested) < MIN_PEOPLE:
        return (
            f"{len(tested)} of {len(people)} people share {MIN_TESTED} prompts or more with "
            f"another; the test needs {MIN_PEOPLE} such people, and advises {MIN_T} prompts each"
        )
    return None


def _leave_out(items: Iterable[VotedItem], person: str) -> list[tuple[float, float, float]]:
    """Per prompt, the means of W_f, of W_h - W_f and of W_h against the other people."""
    rows = []
    for item in items:
        if person in item.votes:
            others = [side_of(v) for name, v in item.votes.items() if name != person]
            judge = sum(side_of(item.judge) == other for other in others)
            own = sum(side_of(item.votes[person]) == other for other in others)
            rows.append((item.prompt_id, float(judge >= own), float(own >= judge)))
    ahead = per_prompt((prompt, judge) for prompt, judge, _ in rows)
    behind = per_prompt((prompt, own) for prompt, _, own in rows)
    return [(ahead[prompt], behind[prompt] - ahead[prompt], behind[prompt]) for prompt in ahead]


def _column(rows: Sequence[tuple[float, float, float]], place: int) -> Floats:
    return np.asarray([row[place] for row in rows], dtype=np.float64)


def side_of(prob: float) -> int:
    """1 for the first answer, -1 for the second, 0 for a tie."""
    return (prob > 0.5) - (prob < 0.5)


def p_below(differences: Floats, epsilon: float) -> float:
    """The one-sided p of the mean of `differences` being `epsilon` or more. Of differences without
    spread it is 0 where they are below epsilon, else 1: equal ones never beat an epsilon of 0."""
    if np.ptp(differences) == 0.0:
        return 0.0 if differences[0] < epsilon else 1.0
    if differences.size >= MIN_T:
        return float(stats.ttest_1samp(differences, epsilon, alternative="less").pvalue)
    # Differences are -1, 0 or 1 for most prompts: ties, of which the exact distribution is slow.
    away = differences - epsilon
    found = stats.wilcoxon(away, alternative="less", correction=True, method="asymptotic")
    return float(found.pvalue)
