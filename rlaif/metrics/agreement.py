"""How far two annotators agree, and whether two judges err together. Pure functions on arrays.

A statistic of items is a function of their weights (see `weighted`). Sources: Cohen 1960 (kappa),
Krippendorff 2011 (alpha), Kendall 1945 (tau-b), McNemar 1947 in its exact form; effective votes
after juries of language models, 2404.18796, and the design effect of Kish 1965.

Biases are what moves a judge besides quality, NaN where a value is missing: position bias as the
rate at which the same slot wins in both orders (2309.00267), length bias as a logistic regression
that controls for the human label (after 2404.04475), preference for its own answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlaif.core.labelled import GivenPair
from rlaif.metrics.intervals import IntervalJson
from rlaif.metrics.metrics import Values, per_prompt
from rlaif.metrics.penalised import fit_logistic
from rlaif.metrics.pooled import figure_intervals
from rlaif.metrics.weighted import (
    Figure,
    Floats,
    Ints,
    Mask,
    Measure,
    mean_of,
    measure_among,
    ratio,
    sums_by,
)
from rlaif.preferences.labels import Verdicts

Distance = Callable[[Floats, Floats], Floats]


def cohen_kappa(first: Floats, second: Floats) -> Measure:
    """(p_o - p_e) / (1 - p_e) of two codings of the same items in a few categories, each shape
    (n,), in [-1, 1].

    NaN without items, and where chance alone would agree always (p_e = 1).
    """
    levels, codes = np.unique(np.concatenate([first, second]), return_inverse=True)
    size = levels.size
    cells = codes[: first.size] * size + codes[first.size :]
    columns = (cells[:, None] == np.arange(size * size)).astype(np.float64)

    def measure_kappa(weights: Floats) -> Floats:
        table = (weights @ columns).reshape(weights.shape[0], size, size)
        total = table.sum(axis=(1, 2))
        observed = ratio(np.trace(table, axis1=1, axis2=2), total)
        expected = ratio((table.sum(axis=1) * table.sum(axis=2)).sum(axis=1), total**2)
        return ratio(observed - expected, 1.0 - expected)

    return measure_kappa


def fleiss_kappa(ratings: Floats) -> Measure:
    """(p_o - p_e) / (1 - p_e) of `ratings`, shape (annotators, units), NaN where one is missing, in
    [-1, 1]: Fleiss 1971, for any number of ratings of a unit (Gwet 2014, chapter 2).

    p_o is the mean over units of the share of their pairs of ratings that agree, and p_e the sum of
    squares of the mean shares of each category. Units with fewer than two ratings do not count. NaN
    without one, and where chance alone would agree always.
    """
    kept = np.flatnonzero((~np.isnan(ratings)).sum(axis=0) >= 2)
    levels = np.unique(ratings[:, kept][~np.isnan(ratings[:, kept])])
    counts = (ratings[:, kept, None] == levels).sum(axis=0).astype(np.float64)
    total = counts.sum(axis=1)
    same = (counts * (counts - 1.0)).sum(axis=1) / (total * (total - 1.0))
    columns = np.column_stack([same, counts / total[:, None]])

    def measure_kappa(weights: Floats) -> Floats:
        used = weights[:, kept]
        means = ratio(used @ columns, used.sum(axis=1)[:, None])
        expected = (means[:, 1:] ** 2).sum(axis=1)
        return ratio(means[:, 0] - expected, 1.0 - expected)

    return measure_kappa


def nominal(left: Floats, right: Floats) -> Floats:
    """Krippendorff's distance of categories: 0 or 1."""
    different: Floats = (left != right).astype(np.float64)
    return different


def interval(left: Floats, right: Floats) -> Floats:
    """Krippendorff's distance of numbers: the squared difference."""
    difference: Floats = left - right
    return difference**2


def krippendorff_alpha(ratings: Floats, distance: Distance = nominal) -> Measure:
    """1 - D_o / D_e of `ratings`, shape (annotators, units), NaN where one is missing; at most 1.
    The weights are those of the units.

    From the coincidence matrix: each unit gives its ordered pairs of values with weight
    1 / (m - 1), and units with fewer than two values give none. NaN without such a unit, and where
    all values are equal, so that no disagreement could be expected.
    """
    kept = np.flatnonzero((~np.isnan(ratings)).sum(axis=0) >= 2)
    levels = np.unique(ratings[:, kept][~np.isnan(ratings[:, kept])])
    counts = (ratings[:, kept, None] == levels).sum(axis=0).astype(np.float64)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(levels.size)
    pairs /= counts.sum(axis=1)[:, None, None] - 1.0
    columns = pairs.reshape(kept.size, levels.size**2)
    far = distance(levels[:, None], levels[None, :])

    def measure_alpha(weights: Floats) -> Floats:
        coincidence = (weights[:, kept] @ columns).reshape(weights.shape[0], *far.shape)
        totals = coincidence.sum(axis=2)
        observed = (coincidence * far).sum(axis=(1, 2))
        expected = ((totals @ far) * totals).sum(axis=1) / (totals.sum(axis=1) - 1.0)
        return 1.0 - ratio(observed, expected)

    return measure_alpha


def pearson(x: Floats, y: Floats) -> Measure:
    """The linear correlation of two arrays of shape (n,); NaN where either does not vary."""
    return lambda weights: _correlate_samples(x, y, weights)


def _correlate_samples(x: Floats, y: Floats, weights: Floats) -> Floats:
    """As `pearson`; `x` and `y` may differ by sample, shape (B, n)."""
    a, spread_a = _centre_values(x, weights)
    b, spread_b = _centre_values(y, weights)
    return ratio((weights * a * b).sum(axis=1), np.sqrt(spread_a) * np.sqrt(spread_b))


def _centre_values(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """The distances from the mean, (B, n), and the sum of their squares, (B,)."""
    whole = weights.sum(axis=1)
    centred = values - ratio((weights * values).sum(axis=1), whole)[:, None]
    squares = (weights * centred**2).sum(axis=1)
    # The mean of equal values may miss them by a rounding error.
    size = (weights * values**2).sum(axis=1)
    return centred, np.where(squares > 1e-24 * size, squares, 0.0)


def spearman(x: Floats, y: Floats) -> Measure:
    """The correlation of the ranks, ties sharing their mean rank; NaN where either is constant."""
    ranks_x, ranks_y = _mean_ranks(x), _mean_ranks(y)
    return lambda weights: _correlate_samples(ranks_x(weights), ranks_y(weights), weights)


def _mean_ranks(values: Floats) -> Callable[[Floats], Floats]:
    codes = _rank_distinct(values)
    by_level = sums_by(codes)

    def rank_samples(weights: Floats) -> Floats:
        counts = by_level(weights)
        middle: Floats = np.cumsum(counts, axis=1) - (counts - 1.0) / 2.0
        return middle[:, codes]

    return rank_samples


def _rank_distinct(values: Floats) -> Ints:
    """The rank of each value among the distinct ones, from 0."""
    codes = np.unique(values, return_inverse=True)[1]
    return codes.astype(np.int64)


def kendall(x: Floats, y: Floats) -> Measure:
    """Kendall's tau-b in O(n log m) for the m levels of the coarser array; NaN where either does
    not vary."""
    a, b = _rank_distinct(x), _rank_distinct(y)
    if a.max(initial=0) > b.max(initial=0):
        a, b = b, a
    ties_a, ties_b = sums_by(a), sums_by(b)
    nets = [_net_at(a, b, bit) for bit in range(int(a.max(initial=0)).bit_length())]

    def measure_tau(weights: Floats) -> Floats:
        square = weights.sum(axis=1) ** 2
        free_a, free_b = (square - (t(weights) ** 2).sum(axis=1) for t in (ties_a, ties_b))
        net = sum((net(weights) for net in nets), start=np.zeros(weights.shape[0]))
        return ratio(2.0 * net, np.sqrt(free_a) * np.sqrt(free_b))

    return measure_tau


def _net_at(a: Ints, b: Ints, bit: int) -> Measure:
    """Concordant less discordant pairs among those whose codes `a` differ in this bit and in none
    above it."""
    block, upper = a >> (bit + 1), (a >> bit) & 1
    order = np.lexsort((b, block))
    block, upper, b = block[order], upper[order], b[order]
    new_block = np.diff(block, prepend=-1) != 0
    starts = np.flatnonzero(new_block | (np.diff(b, prepend=-1) != 0))
    # The first and the last of its block, for each group of equal block and b.
    first = np.maximum.accumulate(np.where(new_block[starts], np.arange(starts.size), 0))
    heads = np.flatnonzero(new_block[starts])
    last = np.append(heads[1:], starts.size)[np.searchsorted(heads, first)] - 1

    def count_net(weights: Floats) -> Floats:
        ordered = weights[:, order]
        high = np.add.reduceat(ordered * upper, starts, axis=1)
        low = np.add.reduceat(ordered, starts, axis=1) - high
        upto = np.cumsum(low, axis=1)
        below = upto - low - (upto - low)[:, first]
        above = upto[:, last] - upto
        net: Floats = (high * (below - above)).sum(axis=1)
        return net

    return count_net


def sign_test(first: int, second: int) -> float:
    """Two-sided exact probability that counts this uneven come of a fair coin, in (0, 1]."""
    total, low = first + second, min(first, second)
    tail, term = 0, 1
    for k in range(low + 1):
        tail += term
        term = term * (total - k) // (k + 1)
    return min(1.0, float(2 * tail / 2**total))


def mcnemar(first_right: Floats, second_right: Floats) -> tuple[int, int, float]:
    """Of two judges' correctness (0 or 1, shape (n,)) on the same pairs: where the first alone is
    right, where the second alone is, and the exact two-sided probability under no difference."""
    alone = int(((first_right == 1) & (second_right == 0)).sum())
    other = int(((first_right == 0) & (second_right == 1)).sum())
    return alone, other, sign_test(alone, other)


def effective_votes(count: int, correlation: Floats) -> Floats:
    """k / (1 + (k - 1) r) for `count` judges whose errors correlate at r, the mean over their
    pairs: k where errors are independent, 1 where all err alike. A negative r counts as 0, so that
    judges are never worth more than their number."""
    votes: Floats = count / (1.0 + (count - 1) * np.maximum(correlation, 0.0))
    return votes


def is_decided(prob: Floats) -> Mask:
    """Where there is a value and it is no tie."""
    known: Mask = ~np.isnan(prob) & (prob != 0.5)
    return known


def same_slot(prob_first: Floats, prob_second: Floats) -> Floats:
    """1 where the first slot won in both orders, -1 where the second did, 0 where the same answer
    won twice; NaN where an order is undecided. Shape (n,).

    Of P(the answer wins) when it was shown first and when it was shown second, each (n,).
    """
    known = is_decided(prob_first) & is_decided(prob_second)
    won = (prob_first > 0.5).astype(np.float64) - (prob_second > 0.5)
    return np.where(known, won, np.nan)


def picks_longer(prob: Floats, longer_by: Floats) -> Floats:
    """1 where a verdict is for the longer answer, else 0; NaN for equal lengths and without a
    verdict. Shape (n,)."""
    kept = is_decided(prob) & (longer_by != 0)
    return np.where(kept, (prob > 0.5) == (longer_by > 0), np.nan)


def length_coefficient(prob: Floats, label: Floats, longer_by: Floats) -> Figure:
    """How much one standard deviation of length difference adds to the log-odds of a verdict for
    that answer, the human label held fixed.

    Features: 1, longer_by / sd, and the label as -1 or 1. Undefined where the regression has no
    maximum, as for a judge that always follows length or always follows people.
    """
    kept = is_decided(prob) & is_decided(label)
    lengths, outcome = longer_by[kept], (prob[kept] > 0.5).astype(np.float64)
    scale = (float(lengths.std()) if lengths.size else 0.0) or 1.0
    human = np.where(label[kept] > 0.5, 1.0, -1.0)
    features = np.stack([np.ones_like(lengths), lengths / scale, human], axis=1)
    powers = np.stack([features[:, 1], features[:, 1] ** 2], axis=1)

    def measure_coefficient(weights: Floats) -> Floats:
        mean, square = ratio(weights @ powers, weights.sum(axis=1, keepdims=True)).T
        slope = fit_logistic(features, outcome, weights)[:, 1]
        by_sd: Floats = slope * np.sqrt(np.maximum(square - mean**2, 0.0))
        return by_sd

    return measure_among(kept, measure_coefficient)


def self_preference(prob: Floats, label: Floats, own: Floats) -> Figure:
    """P(picks own | people pick own) - P(picks other | people pick other), in [-1, 1].

    `own` is 1 where the first answer is the judge's own and the second is not, -1 the other way
    round, else 0. Undefined where either condition never holds.
    """
    kept = is_decided(prob) & is_decided(label) & (own != 0)
    mine = own > 0
    judged, said = (prob > 0.5) == mine, (label > 0.5) == mine
    where_own = mean_of(np.where(kept & said, judged, np.nan))
    where_other = mean_of(np.where(kept & ~said, ~judged, np.nan))
    return Figure(lambda weights: where_own.of(weights) - where_other.of(weights), int(kept.sum()))


Choices = Mapping[str, tuple[str, bool]]
"""Pair id to its prompt's id and whether the first answer was chosen."""


def label_agreement(first: Choices, second: Choices) -> dict[str, IntervalJson]:
    """`agreement` (share of pairs with the same choice, [0, 1]) and `kappa` (Cohen's, [-1, 1]).

    Over the pairs that both have, with intervals over prompts. Kappa is missing where chance alone
    would agree always, as it does of one-sided labels.
    """
    common = sorted(first.keys() & second.keys())
    one, other = (
        np.asarray([labels[name][1] for name in common], dtype=np.float64)
        for labels in (first, second)
    )

    if not common:
        return {}
    prompts = [first[name][0] for name in common]
    figures = {
        "agreement": mean_of((one == other).astype(np.float64)),
        "kappa": Figure(cohen_kappa(one, other), one.size),
    }
    intervals = figure_intervals(figures, prompts)
    return {name: interval.to_json() for name, interval in intervals.items()}


def reward_accuracy(
    pairs: Sequence[GivenPair],
    new: Mapping[str, float],
    old: Mapping[str, float],
    verdicts: Verdicts,
) -> Values:
    """Per prompt, the share of pairs whose better answer has the larger implicit reward.

    That is DPO's reward but for beta (2305.18290, section 4): the answer's summed log-prob under
    the policy less that under M0; `new` and `old` give them by completion id, in nats. Equal
    rewards count half; a pair without a verdict, with a tie or without a log-prob does not count.
    """
    rewards = {name: new[name] - old[name] for name in new.keys() & old.keys()}
    found: list[tuple[str, float]] = []
    for pair in pairs:
        verdict = verdicts.get(pair.pair_id, 0.5)
        first, second = rewards.get(pair.first), rewards.get(pair.second)
        if verdict == 0.5 or first is None or second is None:
            continue
        right = 0.5 if first == second else float((first > second) == (verdict > 0.5))
        found.append((pair.prompt_id, right))
    return per_prompt(found)
