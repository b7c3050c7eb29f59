"""Rule-based rewards: yes/no propositions about an answer, weighed by fitted weights (2411.01111).

The reward is sum of w_i phi_i with phi_i = P(yes) for proposition i, on [0, 1]; `rbr_fit`
finds the weights.

The weights are fitted to preferences (section 4.2): for every pair the loss is max(0, margin +
R(worse) - R(better)), where R has the reward of a reward model besides, if one is given: what that
model separates by the margin already needs no weight. Prompts and not pairs are split into fitted
and held-out ones, since answers recur within a prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np
import numpy.typing as npt

from rlaif.config.base import StepId, Strict
from rlaif.core.errors import ConfigError, RlaifError
from rlaif.core.numbers import sigmoid
from rlaif.core.records import Completion, Judgement, Preference, Prompt, content_hash
from rlaif.core.resources import find
from rlaif.core.yamlio import load_yaml, suggest, validate
from rlaif.engines.base import Capability
from rlaif.judges.base import Answered, Call, Verdict, most_calls, verdicts_of
from rlaif.judges.common import JudgeInputs, VerdictJudge
from rlaif.judges.composed import annotators, completions_of, conclude_verdict, missing_status
from rlaif.judges.yes_no import YesNo, YesNoJudge
from rlaif.preferences.aggregate import raw_value


class RbrJudge(VerdictJudge):
    """Rule-based rewards: yes/no propositions with fitted weights. `weights` is a YAML file."""

    kind: Literal["rbr"]
    id: StepId = "rbr"
    weights: str
    yes_labels: list[str] = ["Yes", " Yes", "yes", " yes"]
    no_labels: list[str] = ["No", " No", "no", " no"]

    def build_judge(self, inputs: JudgeInputs) -> Rbr:
        """The judge of the spec: it asks about the principles that the weights file names."""
        path = find(self.weights, inputs.beside)
        data, lines = load_yaml(path)
        fitted = validate(RbrWeights, data, lines, path)
        if not fitted.weights:
            raise ConfigError(f"judge {self.id}: there are no weights", path)
        for name in self.principles or ():
            if name not in fitted.weights:
                hint = suggest(name, list(fitted.weights))
                raise ConfigError(f"judge {self.id}: principle {name!r} has no weight{hint}", path)
        names = self.principles or sorted(fitted.weights)
        asker = YesNoJudge(
            kind="yes_no",
            id=self.id,
            by=self.by,
            template=self.template or "prompts/judges/rbr.j2",
            principles=names,
            yes_labels=self.yes_labels,
            no_labels=self.no_labels,
            abstain_labels=self.abstain_labels,
            min_label_mass=self.min_label_mass,
        ).build_judge(inputs)
        kept = {name: fitted.weights[name] for name in sorted(names)}
        return Rbr(
            id=self.id,
            judge_hash=content_hash("rbr", asker.judge_hash, kept),
            asker=asker,
            weights=kept,
        )


class RbrWeights(Strict):
    """A weights file: the weight of each proposition, which is a principle's id."""

    weights: dict[str, float]


@dataclass(frozen=True, slots=True)
class Rbr:
    """`score` is the sigmoid of the reward, which is the raw value; `distribution` holds each phi
    and the reward. A proposition that does not apply to the prompt adds nothing."""

    id: str
    judge_hash: str
    asker: YesNo
    weights: Mapping[str, float]
    comparative: bool = False
    unbounded: bool = True

    @property
    def roles(self) -> Mapping[str, frozenset[Capability]]:
        """One model."""
        return {"by": self.asker.needs}

    @property
    def needs(self) -> frozenset[Capability]:
        """Label probabilities."""
        return self.asker.needs

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call per completion and proposition."""
        return self.asker.calls(prompt, completions, seed)

    def follow(
        self, calls: Sequence[Call], answers: Mapping[str, Answered], seed: int
    ) -> list[Call]:
        """Nothing."""
        return []

    def most_calls(self, calls: Sequence[Call]) -> int:
        """The calls as they are."""
        return most_calls(self.asker, calls)

    def conclude(self, calls: Sequence[Call], answers: Mapping[str, Answered]) -> list[Judgement]:
        """One judgement per completion."""
        found = []
        for completion in completions_of(calls):
            own = [c for c in calls if c.shown[0].completion_id == completion.completion_id]
            read = verdicts_of(self.asker, own, answers)
            asked = [j for j in read if j.status != "not_applicable"]
            phi = {j.principle: j.score for j in asked if j.principle and j.score is not None}
            if not asked or len(phi) < len(asked):
                verdict = Verdict(missing_status(j.status for j in read if j.score is None))
            else:
                reward = sum(self.weights[name] * value for name, value in sorted(phi.items()))
                kept = {**phi, "reward": reward}
                verdict = Verdict("ok", sigmoid(reward), distribution=kept, raw_value=reward)
            who = annotators(own, answers, self.id)
            found.append(conclude_verdict(self, own, [completion], who, verdict))
        return found


Floats = npt.NDArray[np.float64]
RATE, ITERATIONS = 0.01, 1000
HELD_OUT = 20
"""One prompt in this many is held out, by the hash of its id."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Weights by proposition. `fitted` and `held_out` are (pairs, share of them that the
    reward puts in the right order), the share None without pairs. `skipped` pairs lack a value."""

    weights: dict[str, float]
    fitted: tuple[int, float | None]
    held_out: tuple[int, float | None]
    skipped: int


def fit(
    judgements: Iterable[Judgement],
    preferences: Sequence[Preference],
    margin: float = 1.0,
    ridge: float = 0.0,
    rewards: Iterable[Judgement] | None = None,
) -> Fit:
    """The weights of the propositions that `judgements` (of a yes_no judge) are about, beside the
    raw values of `rewards` (of a reward model), to which the weighted sum is to be added.

    A proposition that does not apply counts 0. Raises RlaifError when no pair can be used.
    """
    table, known = _tabulate_propositions(judgements)
    base: dict[str, float] = {}
    if rewards is not None:
        base = _mean_rewards(rewards)
        known &= base.keys()
    names = sorted({name for row in table.values() for name in row})
    pairs = [p for p in preferences if p.chosen_id in known and p.rejected_id in known]
    train = [p for p in pairs if int(content_hash("rbr", p.prompt_id), 16) % HELD_OUT]
    if not train or not names:
        raise RlaifError(
            f"no pair can be fitted: {len(preferences)} preferences, and judgements of "
            f"{len(known)} answers; are all about the same completions?"
        )
    gaps, ahead = _feature_gaps(train, table, names), _reward_gaps(train, base)
    weights = fit_hinge(gaps, margin, ridge, ahead)
    fitted = {p.preference_id for p in train}
    held = [p for p in pairs if p.preference_id not in fitted]
    return Fit(
        {name: float(weight) for name, weight in zip(names, weights, strict=True)},
        (len(train), _share_right(gaps, weights, ahead)),
        (
            len(held),
            _share_right(_feature_gaps(held, table, names), weights, _reward_gaps(held, base)),
        ),
        len(preferences) - len(pairs),
    )


def fit_hinge(
    gaps: Floats, margin: float = 1.0, ridge: float = 0.0, ahead: Floats | float = 0.0
) -> Floats:
    """Weights (k,) that make mean max(0, margin - ahead - gaps w) + ridge |w|^2 / 2 small.

    `gaps` (n, k) are the features of the better answers less those of the worse ones, and `ahead`
    (n,) is by how much another reward prefers the better ones. Adam from
    zero weights, 1,000 steps at rate 0.01 as in the paper; the best weights seen are kept.
    """
    weights, mean, square = (np.zeros(gaps.shape[1]) for _ in range(3))
    best, least = weights, np.inf
    for step in range(1, ITERATIONS + 1):
        short = margin - ahead - gaps @ weights
        loss = float(np.maximum(short, 0).mean() + ridge * weights @ weights / 2)
        if loss < least:
            best, least = weights, loss
        slope = ridge * weights - (gaps * (short > 0)[:, None]).mean(0)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        scaled = (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        weights = weights - RATE * scaled
    return best


def _tabulate_propositions(
    judgements: Iterable[Judgement],
) -> tuple[dict[str, dict[str, float]], set[str]]:
    """Answer to proposition to mean P(yes), and the answers that lack no value that applied."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    broken, seen = set(), set()
    for j in judgements:
        seen.add(j.subject)
        if j.score is not None and j.principle is not None:
            values[j.subject][j.principle].append(j.score)
        elif j.status != "not_applicable":
            broken.add(j.subject)
    table = {s: {name: fmean(v) for name, v in row.items()} for s, row in values.items()}
    return table, seen - broken


def _feature_gaps(
    pairs: Sequence[Preference], table: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> Floats:
    def feature_row(answer: str) -> list[float]:
        """The judged propositions of an answer, 0 where one was not judged."""
        return [table.get(answer, {}).get(name, 0.0) for name in names]

    rows = [np.subtract(feature_row(p.chosen_id), feature_row(p.rejected_id)) for p in pairs]
    return np.array(rows).reshape(len(pairs), len(names))


def _mean_rewards(judgements: Iterable[Judgement]) -> dict[str, float]:
    """Answer to its mean raw value. Raises RlaifError where none has one."""
    values: dict[str, list[float]] = defaultdict(list)
    for judgement in judgements:
        value = raw_value(judgement)
        if value is not None:
            values[judgement.subject].append(value)
    if not values:
        raise RlaifError("no judgement of the rewards has a raw value; are they a reward model's?")
    return {answer: fmean(own) for answer, own in values.items()}


def _reward_gaps(pairs: Sequence[Preference], base: Mapping[str, float]) -> Floats:
    """(n,) by how much the reward model prefers the better answers; 0 without one."""
    gaps = [base.get(p.chosen_id, 0.0) - base.get(p.rejected_id, 0.0) for p in pairs]
    return np.array(gaps, dtype=np.float64)


def _share_right(gaps: Floats, weights: Floats, ahead: Floats) -> float | None:
    return float(np.mean(gaps @ weights + ahead > 0)) if len(gaps) else None
