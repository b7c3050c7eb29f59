"""Figures of reward models on tables whose figures are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlaif.core.numbers import sigmoids
from rlaif.engines.local.distance import fit_region, nearest
from rlaif.judges.implicit_reward import combine
from rlaif.metrics.reward_figures import (
    RewardTable,
    accuracy_by,
    best_of_n,
    best_of_n_curve,
    best_of_n_kl,
    label_noise,
    margin_bins,
    reliability_of,
    reward_figures,
    reward_intervals,
)
from rlaif.metrics.weighted import compute_defined


def table(gaps, lengths=None, subsets=None):
    n = len(gaps)
    gaps = np.asarray(gaps, dtype=np.float64)
    chosen_length = np.asarray(lengths if lengths is not None else [0.0] * n, dtype=np.float64)
    names = np.asarray([f"p{i}" for i in range(n)])
    return RewardTable(
        names,
        np.asarray(subsets or [""] * n),
        np.asarray(["human"] * n),
        gaps,
        np.zeros(n),
        chosen_length,
        np.zeros(n),
        np.ones(n),
    )


def figures(t):
    """What the figures are on the pairs themselves, with how many pairs each is taken over."""
    made = reward_figures(t)
    return {k: (v, made[k].n) for k, v in compute_defined(made, t.gap.size).items()}


def test_accuracy_counts_a_tie_as_one_half_and_the_length_figures_divide_the_pairs():
    found = figures(table([1.0, -1.0, 0.0, 2.0], lengths=[5, 5, -5, -5]))
    assert found["accuracy"] == (0.625, 4)
    assert found["accuracy_where_longer_wins"] == (0.5, 2)
    assert found["accuracy_where_shorter_wins"] == (0.75, 2)
    assert found["prefers_longer"] == (pytest.approx((1 + 0 + 0.5 + 0) / 4), 4)
    assert "accuracy" not in figures(table([]))


def test_log_loss_and_brier_of_one_who_knows_nothing():
    found = figures(table([0.0, 0.0]))
    assert found["log_loss"][0] == pytest.approx(math.log(2))
    assert found["brier"][0] == pytest.approx(0.25)
    assert "length_spearman" not in found


def test_rewards_that_are_log_odds_are_calibrated_and_steeper_ones_are_not():
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=20000)
    right = rng.random(20000) < sigmoids(gaps)
    gaps = np.where(right, gaps, -gaps)
    assert figures(table(gaps))["ece"][0] < 0.01
    assert figures(table(5 * gaps))["ece"][0] > 0.1


def test_the_curve_of_calibrated_rewards_lies_on_the_diagonal_and_is_symmetric():
    rng = np.random.default_rng(4)
    gaps = rng.normal(size=5000)
    right = rng.random(5000) < sigmoids(gaps)
    curve = reliability_of(table(np.where(right, gaps, -gaps)))
    assert sum(b["n"] for b in curve) == 10000
    for low, high in zip(curve, reversed(curve), strict=True):
        assert low["share"] == pytest.approx(1 - high["share"]) and low["n"] == high["n"]
        assert low["low"] <= low["share"] <= low["high"]
        assert low["share"] == pytest.approx(low["prob"], abs=0.1)


def test_a_reward_of_length_correlates_fully_with_it():
    lengths = [3, -1, 4, -5]
    found = figures(table(lengths, lengths=lengths))
    assert found["length_spearman"][0] == pytest.approx(1.0)
    assert found["prefers_longer"][0] == 1.0


def test_intervals_hold_the_figure_and_subsets_are_apart():
    t = table([1, 1, 1, -1, -1, 1, 1, 1], subsets=["a"] * 3 + ["b"] * 2 + [""] * 3)
    whole = reward_intervals(t)["accuracy"]
    assert whole.low <= whole.mean == 0.75 <= whole.high
    by = accuracy_by(t, t.subset.tolist())
    assert {name: (i.mean, i.n) for name, i in by.items()} == {"a": (1.0, 3), "b": (0.0, 2)}


def test_margin_bins_hold_like_numbers_and_equal_values_make_one():
    bins = margin_bins(np.arange(8.0))
    assert [bins.count(name) for name in sorted(set(bins))] == [2, 2, 2, 2]
    assert len(set(margin_bins(np.ones(5)))) == 1


def test_best_of_n_is_the_mean_over_every_draw():
    rewards = np.array([0.3, 2.0, -1.0, 0.7])
    gold = np.array([5.0, 1.0, 2.0, 4.0])
    found = best_of_n({"p": rewards, "short": rewards[:1]}, {"p": gold, "short": gold[:1]}, 2)
    from itertools import combinations

    draws = [max(pair, key=lambda i: rewards[i]) for pair in combinations(range(4), 2)]
    assert found["proxy"] == {"p": pytest.approx(np.mean([rewards[i] for i in draws]))}
    assert found["gold"]["p"] == pytest.approx(np.mean([gold[i] for i in draws]))
    kls = [best_of_n_kl(n) for n in (2, 4, 16, 64)]
    assert kls == pytest.approx([0.193147, 0.636294, 1.835089, 3.174508], abs=1e-6)


def hackable(prompts=60, answers=64, members=5):
    """Answers of some quality, and rewards that each overrate a few, other ones, by far."""
    rng = np.random.default_rng(1)
    gold = {f"p{i}": rng.normal(size=answers) for i in range(prompts)}
    proxies = {
        name: np.stack([values + 6.0 * (rng.random(answers) < 0.05) for _ in range(members)])
        for name, values in gold.items()
    }
    # What is overrated is bad.
    for name, values in gold.items():
        values -= 3.0 * (proxies[name] - values > 3).any(0)
    return gold, proxies


def test_best_of_n_exploits_one_reward_and_the_worst_of_an_ensemble_much_less():
    gold, members = hackable()

    def curve(how):
        joined = {
            name: np.array([combine(column, how, 1.0) for column in rewards.T.tolist()])
            for name, rewards in members.items()
        }
        return best_of_n_curve(joined, gold)

    single = best_of_n_curve({n: r[0] for n, r in members.items()}, gold)
    worst, mean, wary = curve("worst"), curve("mean"), curve("uncertainty")
    assert [row["n"] for row in single] == [1, 2, 4, 8, 16, 32, 64]
    proxy = [row["proxy"]["mean"] for row in single]
    assert proxy == sorted(proxy)
    last = [rows[-1]["gold"]["mean"] for rows in (single, mean, worst, wary)]
    assert last[0] < 0 and single[-1]["gold"]["high"] < worst[-1]["gold"]["low"]
    assert last[2] > last[1] > last[0] and last[3] > last[1]


def test_ways_to_combine_agree_where_the_members_do():
    for how in ("mean", "worst", "uncertainty"):
        assert combine([0.7, 0.7, 0.7], how, 1.0) == pytest.approx(0.7)
    assert combine([0.0, 2.0], "uncertainty", 0.0) == combine([0.0, 2.0], "mean", 9.0) == 1.0
    assert combine([0.0, 2.0], "uncertainty", 0.5) == 0.5
    assert combine([2.0, 0.0, 1.0], "worst", 1.0) == 0.0


def test_planted_wrong_labels_are_suspected_and_right_ones_are_not():
    rng = np.random.default_rng(2)
    wrong = rng.random(2000) < 0.1
    prob = np.where(wrong, 0.1, 0.9) + rng.normal(scale=0.03, size=2000)
    share, suspect = label_noise(prob.clip(0, 1))
    assert share == pytest.approx(0.1, abs=0.03)
    assert (suspect & ~wrong).sum() == 0 and suspect[wrong].mean() > 0.8
    assert label_noise(np.full(10, 0.5))[0] == label_noise(np.full(10, 0.6))[0] == 0.0


def test_distance_is_about_one_inside_and_grows_outside():
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(8, 8))
    region = fit_region(rng.normal(size=(500, 8)) @ mix)
    inside = region.distance(rng.normal(size=(200, 8)) @ mix)
    outside = region.distance((rng.normal(size=(200, 8)) + 5.0) @ mix)
    # Shrinkage makes the narrowest directions look wider than they are.
    assert 0.6 < inside.mean() < 1.1
    assert outside.min() > inside.max()
    with pytest.raises(ValueError, match="two answers"):
        fit_region(np.zeros((1, 3)))


def test_the_nearest_may_be_the_most_opposed():
    known = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.1]])
    assert [i for i, _ in nearest(np.array([1.0, 0.0]), known, 2)] == [0, 2]
    assert nearest(np.array([1.0, 0.0]), known, 2)[1][1] < -0.99
