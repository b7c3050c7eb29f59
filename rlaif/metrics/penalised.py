"""Penalised logistic regressions with profile likelihood intervals, for a handful of features.

The log-likelihood has Jeffreys' penalty 1/2 log det I added, the information I being of the columns
that have no other prior (Firth 1993; Heinze and Schemper 2002), and -1/2 precision b^2 for the
others. So coefficients are finite where the outcomes are separated, as those of a player who won
every game, and so are their intervals, which no curvature at the maximum would give.

The first axis of every array is that of separate samples, B of them, computed at once.

`fit_logistic` is the plain regression, by Newton's method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rlaif.core.numbers import sigmoids
from rlaif.metrics.weighted import Floats

FARTHEST = 30.0
"""An end farther than this from its estimate, in log-odds, is infinite: the odds are 1 to 10^13,
and sums of such weights lose their digits."""

_STEPS, _HALVINGS, _SMALL_STEP = 100, 30, 1e-9
_LONGEST_STEP = 2.0
"""Beyond it the quadratic model of the likelihood does not hold."""
_ROOT_STEPS, _ROOT_WIDTH = 80, 1e-7


@dataclass(frozen=True, slots=True)
class Trials:
    """What is regressed: `won` of `counts` trials, (B, n), of rows with `features`, (B, n, k).

    Shares count in parts. `precision`, (k,), is that of the normal prior about 0 of each
    coefficient; 0 stands for Jeffreys' prior.
    """

    features: Floats
    won: Floats
    counts: Floats
    precision: Floats

    def repeated(self, times: int) -> Trials:
        """Each sample `times` times over, one after the other."""
        return Trials(
            np.repeat(self.features, times, axis=0),
            np.repeat(self.won, times, axis=0),
            np.repeat(self.counts, times, axis=0),
            self.precision,
        )


@dataclass(frozen=True, slots=True)
class _Point:
    """The penalised log-likelihood, (B,), its slope, (B, k), and minus its curvature, (B, k, k)."""

    value: Floats
    slope: Floats
    bend: Floats


def fit_coefficients(trials: Trials) -> Floats:
    """The coefficients of the greatest penalised likelihood, (B, k)."""
    samples, _, size = trials.features.shape
    every = np.broadcast_to(np.eye(size), (samples, size, size))
    return _climb_likelihood(trials, np.zeros((samples, size)), every)


def expected_information(trials: Trials, beta: Floats) -> Floats:
    """The expected information of the coefficients without Jeffreys' penalty, (B, k, k)."""
    weights = trials.counts * _compute_variance(_compute_scores(trials, beta))
    return _weighted_products(trials.features, weights) + np.diag(trials.precision)


def design_effect(trials: Trials, beta: Floats, contrast: Floats, units: Floats) -> Floats:
    """The cluster-robust variance of `contrast` . b over the model's, (B,), for contrasts (B, k).

    `units`, (B, U, k), are the sums over each unit's rows of feature times residual (Liang and
    Zeger 1986); NaN for fewer than two units.
    """
    count = units.shape[1]
    if count < 2:
        return np.full(len(beta), np.nan)
    inverse = _invert_matrices(expected_information(trials, beta))
    along = np.einsum("bkl,bl->bk", inverse, contrast)
    robust = count / (count - 1) * (np.einsum("buk,bk->bu", units, along) ** 2).sum(axis=1)
    found: Floats = robust / np.einsum("bk,bk->b", along, contrast)
    return found


def profile_ends(
    trials: Trials, beta: Floats, contrast: Floats, fall: Floats
) -> tuple[Floats, Floats]:
    """Where the profile of `contrast` . b, contrasts (B, k), has fallen by `fall` / 2, (B,), on
    each side of the maximum `beta`: the ends of an interval by likelihood ratio. Infinite beyond
    `FARTHEST`, and where the fall is."""
    limited = np.isfinite(fall)
    if not limited.all():
        # No likelihood falls so far, and the search for where it does would be long.
        low, high = np.full(fall.shape, -np.inf), np.full(fall.shape, np.inf)
        if limited.any():
            some = Trials(
                trials.features[limited],
                trials.won[limited],
                trials.counts[limited],
                trials.precision,
            )
            low[limited], high[limited] = profile_ends(
                some, beta[limited], contrast[limited], fall[limited]
            )
        return low, high
    top = _evaluate_point(trials, beta).value
    inverse = _invert_matrices(expected_information(trials, beta))
    variance = np.einsum("bk,bkl,bl->b", contrast, inverse, contrast)
    reach = np.sqrt(variance * fall)
    estimate = np.einsum("bk,bk->b", contrast, beta)
    basis = _orthogonal_basis(contrast)
    unit = contrast / (contrast**2).sum(axis=1, keepdims=True)

    def find_end(side: float) -> Floats:
        at = beta.copy()

        def exceed_fall(distance: Floats) -> Floats:
            """By how much the root of the fall exceeds what is allowed; nearly a line. Each search
            starts from where the last one ended."""
            nonlocal at
            moved = estimate + side * distance - np.einsum("bk,bk->b", contrast, at)
            at = _climb_likelihood(trials, at + unit * moved[:, None], basis)
            fallen = 2 * (top - _evaluate_point(trials, at).value)
            return np.asarray(np.sqrt(np.maximum(fallen, 0.0)) - np.sqrt(fall))

        found: Floats = estimate + side * _find_crossing(exceed_fall, reach)
        return found

    return find_end(-1.0), find_end(1.0)


def _find_crossing(over: Callable[[Floats], Floats], first: Floats) -> Floats:
    """Where the rising `over` becomes 0, to the right of 0, where it is below: by longer and longer
    steps until it is above, then by secants inside the bracket; infinite where it is not above at
    `FARTHEST`."""
    low, high = np.zeros_like(first), np.clip(first, 1e-3, FARTHEST)
    at_low, at_high = over(low), over(high)
    while (short := (at_high < 0) & (high < FARTHEST)).any():
        low, at_low = np.where(short, high, low), np.where(short, at_high, at_low)
        high = np.where(short, np.minimum(1.5 * high, FARTHEST), high)
        at_high = np.where(short, over(high), at_high)
    endless = at_high < 0
    for step in range(_ROOT_STEPS):
        if (endless | (np.minimum(-at_low, at_high) < _ROOT_WIDTH)).all():
            break
        with np.errstate(divide="ignore", invalid="ignore"):
            secant = low - at_low * (high - low) / (at_high - at_low)
        # The root lies close to the secant's: a bracket of a tenth about it closes in from both
        # sides; each third step halves, in case it does not.
        nudge = (0.1 if step % 2 else -0.1) * np.minimum(secant - low, high - secant)
        secant = secant + nudge
        inside = np.isfinite(secant) & (step % 3 < 2)
        middle = np.where(inside & ~endless, secant, (low + high) / 2)
        value = over(middle)
        above = value >= 0
        high, at_high = np.where(above, middle, high), np.where(above, value, at_high)
        low, at_low = np.where(above, low, middle), np.where(above, at_low, value)
    return np.where(endless, np.inf, np.where(at_high < -at_low, high, low))


def _climb_likelihood(trials: Trials, start: Floats, basis: Floats) -> Floats:
    """The coefficients of the greatest penalised likelihood that are reached from `start`, (B, k),
    along `basis`, (B, k, d), by Newton's method with halved steps."""
    if not basis.shape[2]:
        return start
    beta, here = start, _evaluate_point(trials, start)
    for _ in range(_STEPS):
        slope = np.einsum("bkd,bk->bd", basis, here.slope)
        bend = np.einsum("bkd,bkl,ble->bde", basis, here.bend, basis, optimize=True)
        step = np.einsum("bkd,bde,be->bk", basis, _invert_matrices(bend), slope, optimize=True)
        longest = np.abs(step).max(axis=1, keepdims=True)
        if longest.max() < _SMALL_STEP:
            break
        step *= np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, _SMALL_STEP))
        # At the maximum the likelihood moves by less than its rounding.
        least = here.value - 1e-12 * np.maximum(1.0, np.abs(here.value))
        for _ in range(_HALVINGS):
            moved = _evaluate_point(trials, beta + step)
            worse = ~(moved.value >= least)
            if not worse.any():
                break
            step[worse] /= 2
        beta, here = beta + step, moved
    return beta


def _invert_matrices(matrices: Floats) -> Floats:
    """The inverses of positive definite matrices, (B, d, d), scaled so that a direction in which
    hardly anything is known does no harm to the others."""
    scale = 1 / np.sqrt(np.maximum(np.einsum("bdd->bd", matrices), 1e-300))
    both = scale[:, :, None] * scale[:, None, :]
    scaled = matrices * both + 1e-14 * np.eye(matrices.shape[1])
    return np.asarray(np.linalg.inv(scaled) * both)


def _evaluate_point(trials: Trials, beta: Floats) -> _Point:
    scores = _compute_scores(trials, beta)
    prob = sigmoids(scores)
    value = (trials.won * scores - trials.counts * np.logaddexp(0.0, scores)).sum(axis=1)
    value -= (trials.precision * beta**2).sum(axis=1) / 2
    free = trials.features[:, :, trials.precision == 0]
    variance = _compute_variance(scores)
    weights = trials.counts * variance
    inside = _weighted_products(free, weights)
    value += np.linalg.slogdet(inside)[1] / 2
    # Half a row's leverage is what the penalty adds to its wins and to its losses.
    inverse = _invert_matrices(inside)
    leverage = weights * ((free @ inverse) * free).sum(axis=2)
    pull = trials.won - trials.counts * prob + leverage * (0.5 - prob)
    slope = np.einsum("bnk,bn->bk", trials.features, pull) - trials.precision * beta
    bend = _weighted_products(trials.features, (trials.counts + leverage) * variance)
    return _Point(value, slope, bend + np.diag(trials.precision))


def _compute_variance(scores: Floats) -> Floats:
    """p (1 - p), which 1 - p in floating point would end at a p of 1 - 10^-16."""
    return sigmoids(scores) * sigmoids(-scores)


def _compute_scores(trials: Trials, beta: Floats) -> Floats:
    return np.asarray((trials.features @ beta[:, :, None])[:, :, 0])


def _weighted_products(features: Floats, weights: Floats) -> Floats:
    return np.asarray(np.swapaxes(features, 1, 2) @ (weights[:, :, None] * features))


def _orthogonal_basis(contrast: Floats) -> Floats:
    """An orthonormal basis, (B, k, k - 1), of what is orthogonal to each contrast, (B, k)."""
    full = np.linalg.qr(contrast[:, :, None], mode="complete")[0]
    return np.asarray(full[:, :, 1:])


MAX_STEPS = 50


def fit_logistic(features: Floats, outcome: Floats, weights: Floats) -> Floats:
    """The maximum-likelihood coefficients, shape (B, k), of `features` (n, k; no intercept is
    added) for `outcome` (n,) on [0, 1], with each of the `weights` (B, n).

    NaN where there are none: features that determine one another, or outcomes that they separate,
    on which Newton's steps never become small.
    """
    count, size = weights.shape[0], features.shape[1]
    products = (features[:, :, None] * features[:, None, :]).reshape(-1, size * size)
    found, beta = np.full((count, size), np.nan), np.zeros((count, size))
    going = np.arange(count)
    for _ in range(MAX_STEPS):
        prob = sigmoids(beta[going] @ features.T)
        used = weights[going]
        hessian = ((used * prob * (1.0 - prob)) @ products).reshape(-1, size, size)
        slope = (used * (outcome - prob)) @ features
        sound = np.linalg.cond(hessian) < 1e12
        going, hessian, slope = going[sound], hessian[sound], slope[sound]
        step = np.linalg.solve(hessian, slope[:, :, None])[:, :, 0]
        beta[going] += step
        largest = np.maximum(1.0, np.abs(beta[going]).max(axis=1))
        ended = np.abs(step).max(axis=1) <= 1e-12 * largest
        found[going[ended]] = beta[going[ended]]
        going = going[~ended]
        if not going.size:
            break
    return found
