"""Length-controlled win rates: what the win rate would be between answers of equal length.

A logistic regression on tanh(length gap / sd) and the generator is asked for a gap of 0. From
`MIN_BATTLES` battles on it is the *minimal* formula of AlpacaEval 2 (arXiv 2404.04475; alpaca_eval
`glm_winrate.py`, `length_controlled_minimal`): without instruction difficulty and without the rows
of gamed baselines, which are no part of the annotations. Its L1 penalty pulls the generator's term
to 0, which below that moves the win rate towards 50% by more than its error; there the penalties
are Jeffreys' on the generator and a standard normal prior on the length term.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlaif.core.numbers import sigmoids
from rlaif.metrics.ends import t_quantile
from rlaif.metrics.penalised import Trials, design_effect, fit_coefficients, profile_ends

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIN_BATTLES = 200
"""Fewest battles for AlpacaEval's formula."""
FOLDS = 5
NO_CONTROL = "length cannot be controlled"


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """A length-controlled win rate by one of two formulas, with its 95% interval, on 0 to 100.

    All are None where there is none, and `note` says why. The interval is by profile likelihood in
    either case, and is stretched to hold the rate of the minimal formula.
    """

    minimal: float | None = None
    small_n: float | None = None
    low: float | None = None
    high: float | None = None
    note: str | None = None


def length_controlled(
    probs: Floats, gaps: Floats | None, units: Ints, weights: Floats
) -> LengthControlled:
    """The win rate at equal length of n battles.

    `probs` are the probabilities that the generator wins, `gaps` the other's length less the
    generator's (None where lengths are unknown), `units` number the prompts of the battles from 0,
    and `weights` say how many battles each row stands for: a half for each of two rows that are the
    same battle.
    """
    battles = round(float(weights.sum()))
    if gaps is None:
        return LengthControlled(note=f"{NO_CONTROL}: lengths are unknown")
    if battles < 2:
        return LengthControlled(note=f"{NO_CONTROL}: there is one battle")
    if probs.sum() in (0.0, probs.size):
        return LengthControlled(note=f"{NO_CONTROL}: one side won every battle")
    if not (gaps.min() < 0 < gaps.max()):
        return LengthControlled(note=f"{NO_CONTROL}: {_one_sided(gaps)}")
    features = np.column_stack([np.tanh(gaps / gaps.std(ddof=1)), np.ones_like(gaps)])
    rate, low, high = penalised_rate(features[None], probs[None], units, weights)
    if battles < MIN_BATTLES:
        return LengthControlled(None, float(rate[0]), float(low[0]), float(high[0]))
    minimal = lc_minimal(probs, gaps)
    return LengthControlled(
        minimal, None, min(minimal, float(low[0])), max(minimal, float(high[0]))
    )


def _one_sided(gaps: Floats) -> str:
    if not gaps.any():
        return "all answers are of equal length"
    if (gaps < 0).all():
        return "every answer is longer"
    if (gaps > 0).all():
        return "every answer is shorter"
    return "no answer is shorter" if gaps.max() == 0 else "no answer is longer"


def penalised_rate(
    features: Floats, probs: Floats, units: Ints, weights: Floats
) -> tuple[Floats, Floats, Floats]:
    """The win rates at equal length of B samples by the penalised form, and the ends of their 95%
    intervals by profile likelihood, each (B,) on 0 to 100.

    `features`, (B, n, 2), have the length term and a 1; `probs` are (B, n). The likelihood may fall
    by t^2 / 2 of C - 2 degrees of freedom, C being the number of units, times the design effect of
    battles that share a unit where that is above 1.
    """
    counts = np.broadcast_to(weights, probs.shape)
    trials = Trials(features, counts * probs, counts, np.asarray([1.0, 0.0]))
    beta = fit_coefficients(trials)
    generator = np.broadcast_to([0.0, 1.0], beta.shape)
    residuals = trials.won - counts * sigmoids(np.einsum("bnk,bk->bn", features, beta))
    number = int(units.max()) + 1
    sums = np.eye(number)[units].T @ (features * residuals[:, :, None])
    effect = np.fmax(1.0, design_effect(trials, beta, generator, sums))
    low, high = profile_ends(trials, beta, generator, t_quantile(number - 2.0) ** 2 * effect)
    return 100 * sigmoids(beta[:, 1]), 100 * sigmoids(low), 100 * sigmoids(high)


def lc_minimal(probs: Floats, gaps: Floats) -> float:
    """The length-controlled win rate by AlpacaEval's minimal formula, on 0 to 100.

    Needs five battles or more, won by both sides, with gaps that differ.
    """
    features = np.column_stack([np.tanh(gaps / gaps.std(ddof=1)), np.ones_like(gaps)])
    return 100 * float(sigmoids(_soft_logistic(features, probs)[1:])[0])


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
