"""Win rates of generators as AlpacaEval counts them, raw and length-controlled.

Percentages are on 0 to 100. The length-controlled figure is the *minimal* formula of AlpacaEval 2
(arXiv 2404.04475; alpaca_eval `glm_winrate.py`, `length_controlled_minimal`): without instruction
difficulty and without the rows of gamed baselines, which are no part of the annotations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlaif.compare.logistic import sigmoid

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FOLDS = 5
CONSTANT_SHARE = 0.5
"""An output that makes up at least this share of a generator's answers is called constant."""
MIN_CONSTANT = 5
"""Fewer instructions than this say nothing about constancy."""


@dataclass(frozen=True, slots=True)
class Battle:
    """Two generators' outputs for one instruction, and the probability that the second is better.

    `lengths` are in characters, None where a text is not known; `output` is the hash of the second
    text.
    """

    prompt_id: str
    first: str
    second: str
    prob_second: float | None
    lengths: tuple[int | None, int]
    outputs: tuple[str | None, str]

    def swapped(self) -> Battle | None:
        """The battle seen from the other side; None where the first text is not known."""
        length, output = self.lengths[0], self.outputs[0]
        if length is None or output is None:
            return None
        prob = None if self.prob_second is None else 1 - self.prob_second
        sides = (self.lengths[1], length), (self.outputs[1], output)
        return Battle(self.prompt_id, self.second, self.first, prob, *sides)


@dataclass(frozen=True, slots=True)
class WinRate:
    """One generator against the baseline, or against all others where there is no one baseline.

    `win_rate` counts the probability that the generator's output is better, `discrete_win_rate` its
    side of 0.5; ties are a half. `standard_error` is that of the mean over battles. In it and in
    that of `lc_minimal`, the battles of one prompt go together where there is no one baseline.
    `lc_minimal` and its standard error are None where lengths are unknown or there are too few
    battles. `constant` is the share of the most frequent output; `is_constant` flags it.
    """

    generator: str
    win_rate: float
    standard_error: float | None
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    n_missing: int
    discrete_win_rate: float
    avg_length: float
    longer: float | None
    lc_minimal: float | None
    lc_minimal_standard_error: float | None
    constant: float
    is_constant: bool


def single_baseline(battles: Sequence[Battle]) -> str | None:
    """The generator that is first in every battle, if there is one."""
    firsts = {battle.first for battle in battles}
    return firsts.pop() if len(firsts) == 1 else None


def win_rates(battles: Sequence[Battle]) -> list[WinRate]:
    """Every generator's win rate, best first. Generators without any verdict are left out."""
    baseline = single_baseline(battles)
    sides: dict[str, list[Battle]] = {}
    for battle in battles:
        sides.setdefault(battle.second, []).append(battle)
        turned = battle.swapped() if baseline is None else None
        if turned is not None:
            sides.setdefault(turned.second, []).append(turned)
    found = [_win_rate(name, fought, baseline is None) for name, fought in sides.items()]
    return sorted((w for w in found if w is not None), key=lambda w: (-w.win_rate, w.generator))


def _win_rate(generator: str, battles: Sequence[Battle], clustered: bool) -> WinRate | None:
    judged = [b for b in battles if b.prob_second is not None]
    probs = np.asarray([b.prob_second for b in judged], dtype=np.float64)
    if not probs.size:
        return None
    wins, draws = int((probs > 0.5).sum()), int((probs == 0.5).sum())
    gaps = [None if b.lengths[0] is None else b.lengths[0] - b.lengths[1] for b in judged]
    known = [gap for gap in gaps if gap is not None]
    prompts = [b.prompt_id for b in judged]
    units = np.unique(prompts, return_inverse=True)[1] if clustered else np.arange(probs.size)
    controlled = None
    if len(known) == len(gaps):
        controlled = lc_minimal(probs, np.asarray(known, dtype=np.float64), units)
    share = Counter(b.outputs[1] for b in battles).most_common(1)[0][1] / len(battles)
    total = probs.size
    return WinRate(
        generator=generator,
        win_rate=100 * float(probs.mean()),
        standard_error=_standard_error(probs, units),
        n_wins=wins,
        n_wins_base=total - wins - draws,
        n_draws=draws,
        n_total=total,
        n_missing=len(battles) - total,
        discrete_win_rate=100 * (wins + draws / 2) / total,
        avg_length=float(np.mean([b.lengths[1] for b in battles])),
        longer=float(np.mean([gap < 0 for gap in known])) if known else None,
        lc_minimal=None if controlled is None else controlled[0],
        lc_minimal_standard_error=None if controlled is None else controlled[1],
        constant=share,
        is_constant=len(battles) >= MIN_CONSTANT and share >= CONSTANT_SHARE,
    )


def _standard_error(probs: Floats, units: Ints) -> float | None:
    """The standard error of the mean when battles of one unit go together (Liang & Zeger 1986);
    with one battle per unit it is the plain one. None for fewer than two units."""
    sums = np.bincount(units, weights=probs - probs.mean())
    if sums.size < 2:
        return None
    return 100 * math.sqrt(sums.size / (sums.size - 1) * float(sums @ sums)) / probs.size


def lc_minimal(probs: Floats, gaps: Floats, units: Ints) -> tuple[float, float | None] | None:
    """The length-controlled win rate and its standard error by the minimal formula.

    `probs` are the probabilities that the generator beats the baseline, `gaps` are the baseline's
    length less the generator's, `units` number the battles that go together, from 0. A logistic
    regression on tanh(gap / sd) and the generator, without an intercept, is asked for a gap of 0.
    Where all gaps are equal nothing can be controlled and the raw rate comes back. None with fewer
    than five battles, or where all have one winner.

    alpaca_eval gives the minimal formula no standard error (its predictions are all equal); here it
    is the sandwich estimate, which allows for soft verdicts; battles of one unit go together in it.
    """
    if probs.size < FOLDS or probs.sum() in (0.0, probs.size):
        return None
    spread = float(gaps.std(ddof=1))
    if spread == 0.0:
        return 100 * float(probs.mean()), _standard_error(probs, units)
    features = np.column_stack([np.tanh(gaps / spread), np.ones_like(gaps)])
    weights = _soft_logistic(features, probs)
    rate = float(sigmoid(weights[1:])[0])
    fitted = sigmoid(features @ weights)
    scores = features * (probs - fitted)[:, None]
    totals = np.stack([np.bincount(units, weights=column) for column in scores.T], axis=1)
    inverse = np.linalg.pinv(features.T @ (features * (fitted * (1 - fitted))[:, None]))
    variance = float((inverse @ (totals.T @ totals) @ inverse)[1, 1])
    return 100 * rate, 100 * rate * (1 - rate) * math.sqrt(max(variance, 0.0))


def _soft_logistic(features: Floats, probs: Floats) -> Floats:
    """The weights (k,) of an L1 logistic regression on probabilities, its penalty chosen by 5-fold
    cross-validation.

    Every row stands for a win of weight p and a loss of weight 1 - p. Solver, seed, tolerance and
    folds are those of alpaca_eval: the solver stops early enough for others to move the win rate by
    0.06.
    """
    import sklearn
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.metrics import make_scorer
    from sklearn.model_selection import GroupKFold

    number = np.arange(probs.size)
    both = np.concatenate([probs, 1 - probs])
    won = np.repeat([1, 0], probs.size)
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_scorer(
            _held_out_loss, response_method="predict_proba", greater_is_better=False
        ).set_score_request(share=True)
        model = LogisticRegressionCV(
            cv=GroupKFold(n_splits=FOLDS),
            scoring=scorer,
            l1_ratios=(1.0,),
            solver="liblinear",
            fit_intercept=False,
            random_state=123,
            use_legacy_attributes=False,
        ).set_fit_request(sample_weight=True)
        model.fit(
            np.concatenate([features, features]),
            won,
            sample_weight=both,
            groups=np.concatenate([number, number]),
            share=both,
        )
    return np.asarray(model.coef_[0], dtype=np.float64)


def _held_out_loss(won: Floats, predicted: Floats, share: Floats) -> float:
    """The mean cross-entropy of doubled rows; `share` is the weight of a row's own side."""
    probs = np.where(won == 1, share, 1 - share)
    predicted = np.clip(predicted, 1e-15, 1 - 1e-15)
    return float(-np.mean(probs * np.log(predicted) + (1 - probs) * np.log(1 - predicted)))
