"""What the disagreement of a judge with people is associated with. Pure functions.

People's votes are predicted by a logistic regression on the judge's log-odds, and on groups of
features of the two answers beside it. All predictions are out of fold, prompts kept whole, with the
same folds for every set of groups. A group's part is its Shapley value (Lundberg and Lee,
1705.07874) of the fall in log-loss; the regression is fitted anew for each set, so parts describe
the data and not one model. They are associations: a feature that people like, and that the judge
sees too little of, has a part as one has that misleads the judge.

No predictor's log-loss can fall below the entropy of people's votes, which is the ceiling here. Two
votes on an item differ with probability d = E 2 p (1 - p), p being the share of people who prefer
the first answer. The entropy follows from d where p is distributed as Beta(a, a) over items: then
d = a / (2 a + 1), and the mean entropy is psi(2 a + 1) - psi(a + 1). Whatever the distribution, it
lies between 2 d log 2 and the entropy of p (1 - p) = d / 2.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial

import numpy as np
from scipy import special

from rlaif.metrics.intervals import Interval
from rlaif.metrics.pooled import figure_intervals
from rlaif.metrics.ridge import fit_ridge, group_folds, predict_probability
from rlaif.metrics.weighted import Figure, Floats, mean_of, ratio

MIN_PAIRS = 200
"""With fewer pairs out-of-fold losses are too noisy for parts."""
FOLDS = 10
L2 = 1.0
"""The ridge penalty, of features that were divided by their root mean square."""
SUREST = 0.99
"""A judge's probabilities are kept this far from certain: its log-odds stay below 4.6."""


@dataclass(frozen=True, slots=True)
class VotedPairs:
    """n pairs with votes of people, as columns of length n.

    `share` is the share of people's votes for the first answer, a tie one half; `differ` the
    probability that two votes on the pair differ, NaN with fewer than two votes; `judge` is the
    judge's P(first is better). `features`, each (n, k) by group, change their sign when the answers
    change places.
    """

    prompts: Sequence[str]
    share: Floats
    differ: Floats
    judge: Floats
    features: Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Log-losses of people's votes in nats, with intervals over prompts.

    `alone` is by the judge's log-odds, `full` by all groups beside it, and `ceiling` the entropy of
    people's votes, with the ends of what is possible whatever the distribution of votes (`bounds`).
    `gap` is alone less ceiling. `parts` are by group and add up to alone less full; `shares` are
    parts over the gap, None where the gap is not above 0. `constant` names the groups whose
    features do not vary. Without two votes on every pair there is no ceiling.
    """

    pairs: int
    alone: Interval
    full: Interval
    parts: Mapping[str, Interval]
    constant: Sequence[str]
    ceiling: Interval | None = None
    bounds: tuple[float, float] | None = None
    gap: Interval | None = None
    shares: Mapping[str, float] | None = None


def explain_disagreement(pairs: VotedPairs, seed: int = 0) -> Disagreement:
    """The losses and their parts. Raises ValueError for fewer than `MIN_PAIRS` pairs, or fewer
    prompts than folds."""
    if len(pairs.prompts) < MIN_PAIRS:
        raise ValueError(f"{len(pairs.prompts)} pairs; {MIN_PAIRS} are needed")
    varying = {name: x for name, x in pairs.features.items() if np.any(x != 0.0)}
    losses = _losses_by_set(pairs, varying, seed)
    alone, full = losses[frozenset()], losses[frozenset(varying)]
    parts = shapley_values({chosen: -loss for chosen, loss in losses.items()})
    figures = {"loss/alone": mean_of(alone), "loss/full": mean_of(full)}
    figures |= {f"part/{name}": mean_of(part) for name, part in parts.items()}
    voted = not np.isnan(pairs.differ).any()
    if voted:
        figures |= ceiling_figures(alone, pairs.differ)
    found = figure_intervals(figures, pairs.prompts, "votes/")
    result = Disagreement(
        len(pairs.prompts),
        found["loss/alone"],
        found["loss/full"],
        {name: found[f"part/{name}"] for name in parts},
        sorted(set(pairs.features) - set(varying)),
    )
    if not voted:
        return result
    gap = found["gap"]
    shares = {name: part.mean / gap.mean for name, part in result.parts.items()}
    return Disagreement(
        result.pairs,
        result.alone,
        result.full,
        result.parts,
        result.constant,
        found["ceiling"],
        entropy_bounds(float(pairs.differ.mean())),
        gap,
        shares if gap.low is not None and gap.low > 0 else None,
    )


def _losses_by_set(
    pairs: VotedPairs, groups: Mapping[str, Floats], seed: int
) -> dict[frozenset[str], Floats]:
    """By each set of groups, every pair's log-loss by a regression that has not seen its prompt."""
    folds = group_folds(pairs.prompts, min(FOLDS, len(set(pairs.prompts))), seed)
    scaled = {name: _scale_columns(columns) for name, columns in groups.items()}
    judge = _scale_columns(judge_logits(pairs.judge)[:, None])
    found = {}
    for chosen in _subsets(groups):
        features = np.hstack([judge, *(scaled[name] for name in sorted(chosen))])
        predicted = np.empty(len(pairs.prompts))
        for held_out in range(int(folds.max()) + 1):
            test = folds == held_out
            weights = fit_ridge(features[~test], pairs.share[~test], L2)
            predicted[test] = predict_probability(features[test], weights)
        found[chosen] = log_losses(predicted, pairs.share)
    return found


def _subsets(names: Collection[str]) -> list[frozenset[str]]:
    ordered = sorted(names)
    return [
        frozenset(chosen)
        for size in range(len(ordered) + 1)
        for chosen in combinations(ordered, size)
    ]


def judge_logits(prob: Floats) -> Floats:
    """The log-odds of probabilities that are kept from certainty."""
    return np.asarray(special.logit(np.clip(prob, 1 - SUREST, SUREST)))


def _scale_columns(columns: Floats) -> Floats:
    """Each column over its root mean square; without its mean it would have a sign of its own."""
    size = np.sqrt((columns**2).mean(axis=0))
    scaled: Floats = columns / np.where(size > 0, size, 1.0)
    return scaled


def log_losses(predicted: Floats, share: Floats) -> Floats:
    """-y log p - (1 - y) log(1 - p) of each item, in nats."""
    kept = np.clip(predicted, 1e-12, 1 - 1e-12)
    return np.asarray(-share * np.log(kept) - (1 - share) * np.log1p(-kept))


def shapley_values(values: Mapping[frozenset[str], Floats]) -> dict[str, Floats]:
    """By name, its mean marginal value over all orders in which the names can be added; `values`
    has an array for every set of names. The parts add up to all less none."""
    names = sorted(set[str]().union(*values))
    count = len(names)
    parts = {}
    for name in names:
        without = [chosen for chosen in values if name not in chosen]
        weights = [
            factorial(len(s)) * factorial(count - len(s) - 1) / factorial(count) for s in without
        ]
        gains = [values[chosen | {name}] - values[chosen] for chosen in without]
        parts[name] = np.asarray(sum(w * g for w, g in zip(weights, gains, strict=True)))
    return parts


def ceiling_figures(alone: Floats, differ: Floats) -> dict[str, Figure]:
    """The entropy of people's votes, and the loss `alone` less that, from each pair's, (n,)."""
    columns = np.stack([alone, differ], axis=1)

    def means(weights: Floats) -> tuple[Floats, Floats]:
        sums = ratio(weights @ columns, weights.sum(axis=1, keepdims=True))
        return sums[:, 0], vote_entropy(sums[:, 1])

    return {
        "ceiling": Figure(lambda weights: means(weights)[1], alone.size),
        "gap": Figure(lambda weights: np.subtract(*means(weights)), alone.size),
    }


def vote_entropy(differ: Floats) -> Floats:
    """The mean entropy of a vote in nats, from the probability that two votes on an item differ,
    for shares that are distributed as Beta(a, a). Votes that differ as often as coins, or more
    often, have that of a coin."""
    differ = np.clip(differ, 0.0, 0.5)
    coin = differ >= 0.5 - 1e-9
    a = differ / np.where(coin, 1.0, 1.0 - 2.0 * differ)
    entropy = special.digamma(2.0 * a + 1.0) - special.digamma(a + 1.0)
    found: Floats = np.where(coin, np.log(2.0), entropy)
    return found


def entropy_bounds(differ: float) -> tuple[float, float]:
    """The least and the greatest mean entropy of a vote, whatever the distribution of shares."""
    kept = min(max(differ, 0.0), 0.5)
    share = 0.5 - 0.5 * float(np.sqrt(1.0 - 2.0 * kept))
    return 2.0 * kept * float(np.log(2.0)), float(special.entr(share) + special.entr(1.0 - share))


def differing_votes(votes: Sequence[float]) -> float:
    """The probability that two different people's votes on an item differ, P(first) each, a tie as
    a coin; NaN with fewer than two."""
    count = len(votes)
    if count < 2:
        return float("nan")
    total, square = sum(votes), sum(v * v for v in votes)
    # Over ordered pairs of votes, the mean of a (1 - b) + b (1 - a).
    both = (total * total - square) / (count * (count - 1))
    return 2.0 * total / count - 2.0 * both
