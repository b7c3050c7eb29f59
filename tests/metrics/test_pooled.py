"""Intervals of pooled figures: prompts are the clusters, and every figure has its rule."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from scipy import stats

from rlaif.metrics import agreement as agree
from rlaif.metrics.figure_rules import RULES, rule_of
from rlaif.metrics.intervals import mean_interval, share_interval, skewed_interval
from rlaif.metrics.pooled import STEADY, UNDEFINED, figure_intervals, left_out
from rlaif.metrics.weighted import Figure, mean_of, share_of


def test_with_as_many_items_in_each_prompt_it_is_the_prompts_means() -> None:
    values = np.random.default_rng(1).random((12, 3))
    names = [f"p{i:02d}" for i in range(12) for _ in range(3)]
    means = {f"p{i:02d}": float(row.mean()) for i, row in enumerate(values)}
    pooled = figure_intervals(
        {"agreement": mean_of(values.ravel()), "reward_mean": mean_of(values.ravel())}, names
    )
    pooled |= figure_intervals({"log_loss": mean_of(values.ravel())}, names)
    for name, alone in (
        ("agreement", share_interval(means, 0.5)),
        ("reward_mean", mean_interval(means)),
        ("log_loss", skewed_interval(means)),
    ):
        assert alone is not None
        ours = pooled[name]
        assert (ours.low, ours.high) == pytest.approx((alone.low, alone.high))
        assert (ours.n, ours.prompts) == (36, 12)


def test_items_count_alike_and_prompts_are_the_sample() -> None:
    """The linear form of a ratio of sums (Cochran 1977, section 6.3): 18 over 5 items, and for each
    prompt 3.6 + 3 / 5 (its sum - 3.6 its items)."""
    names = ["a", "a", "a", "b", "c"]
    values = np.asarray([4.0, 4.0, 4.0, 1.0, 5.0])
    found = figure_intervals({"reward_mean": mean_of(values)}, names)["reward_mean"]
    half = stats.t.ppf(0.975, 2) * np.std([4.32, 2.04, 4.44], ddof=1) / sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((3.6, 3.6 - half, 3.6 + half))
    assert (found.n, found.prompts) == (5, 3)


def test_a_figure_is_left_out_one_prompt_at_a_time() -> None:
    """SE by the loop over prompts that the weights stand for, and Fisher's z of a correlation."""
    rng = np.random.default_rng(2)
    names = np.repeat([f"p{i:02d}" for i in range(15)], rng.integers(1, 5, 15))
    x = rng.normal(size=names.size)
    y = x + rng.normal(size=names.size)
    figures = {"error_correlation": Figure(agree.pearson(x, y), x.size)}
    found = figure_intervals(figures, names.tolist())["error_correlation"]
    without = np.arctanh(
        [np.corrcoef(x[names != n], y[names != n])[0, 1] for n in np.unique(names)]
    )
    se = sqrt(14 / 15 * ((without - without.mean()) ** 2).sum())
    middle = np.arctanh(np.corrcoef(x, y)[0, 1])
    t = stats.t.ppf(0.975, 14)
    assert found.low == pytest.approx(np.tanh(middle - t * se))
    assert found.high == pytest.approx(np.tanh(middle + t * se))
    assert found.p == pytest.approx(2 * stats.t.sf(middle / se, 14))


def test_prompts_without_what_a_figure_needs_do_not_count() -> None:
    rng = np.random.default_rng(3)
    clear = np.repeat([True, False], 30)
    prob, label = rng.random(60), np.where(clear, rng.random(60) > 0.5, np.nan)
    values = np.where(clear, (prob > 0.5) == (label > 0.5), np.nan)
    names = [f"p{i:02d}" for i in range(60)]
    assert figure_intervals({"agreement": mean_of(values)}, names)["agreement"].prompts is None
    both = {"agreement": mean_of(values)}
    assert figure_intervals(both, names)["agreement"].n == 30


def test_a_figure_that_some_prompt_alone_makes_has_no_ends() -> None:
    """Kappa of one disagreement: without it both always agree on what they say, and it is 1."""
    one = np.asarray([1.0] * 9 + [-1.0])
    other = np.asarray([1.0] * 9 + [1.0])
    names = [f"p{i}" for i in range(10)]
    kappa = figure_intervals({"kappa": Figure(agree.cohen_kappa(one, other), 10)}, names)["kappa"]
    assert (kappa.low, kappa.note) == (None, UNDEFINED)
    mixed = np.asarray([1.0, -1.0] * 5)
    sure = figure_intervals({"kappa": Figure(agree.cohen_kappa(mixed, mixed), 10)}, names)["kappa"]
    assert (sure.mean, sure.low, sure.note) == (1.0, None, STEADY)


def test_many_prompts_are_left_out_in_blocks() -> None:
    blocks = left_out(1000)
    assert np.bincount(blocks).tolist() == [5] * 200
    assert left_out(200).tolist() == list(range(200))
    rng = np.random.default_rng(4)
    x = rng.normal(size=1000)
    figure = {"error_correlation": Figure(agree.pearson(x, x + rng.normal(size=1000)), 1000)}
    found = figure_intervals(figure, [f"{i:04d}" for i in range(1000)])["error_correlation"]
    assert found.df == 199
    # Fisher: 1 / sqrt(n - 3) on the scale of z.
    half = (np.arctanh(found.high) - np.arctanh(found.low)) / 2  # type: ignore[arg-type]
    assert half == pytest.approx(1.97 / sqrt(997), rel=0.15)


def test_a_rare_share_counts_items_and_clusters() -> None:
    counted = share_of(np.asarray([1.0, 0.0, 0.0, 2.0]), np.asarray([4.0, 4.0, 4.0, 4.0]))
    found = figure_intervals({"unread_rate": counted}, ["a", "a", "b", "c"])["unread_rate"]
    assert (found.count, found.n, found.prompts) == (3, 16, 3)


def test_the_order_of_pairs_changes_nothing() -> None:
    rng = np.random.default_rng(5)
    x, y, names = rng.normal(size=40), rng.normal(size=40), rng.integers(0, 9, 40).astype(str)
    order = rng.permutation(40)
    one = figure_intervals({"spearman": Figure(agree.spearman(x, y), 40)}, names.tolist())
    other = figure_intervals(
        {"spearman": Figure(agree.spearman(x[order], y[order]), 40)}, names[order].tolist()
    )
    assert one["spearman"].low == pytest.approx(other["spearman"].low, rel=1e-9)


def test_a_name_has_its_own_rule_or_that_of_its_beginning() -> None:
    assert rule_of("score/self/kind") is RULES["score/"]
    assert rule_of("pairs/margin") is RULES["pairs/margin"]
    assert rule_of("samples/spread/self") is RULES["samples/spread/"]
    with pytest.raises(KeyError, match="no rule for the interval of 'unheard_of'"):
        rule_of("unheard_of")


@pytest.mark.parametrize(("name", "few"), [("alpha", 10), ("reward_spread", 64)])
def test_few_prompts_are_said_to_make_narrow_intervals(name: str, few: int) -> None:
    """Of few prompts the interval covers too little (benchmarks/coverage.py), and says so."""
    notes = []
    for prompts in (few - 1, few):
        rng = np.random.default_rng(3)
        names = [f"p{i:02d}" for i in range(prompts) for _ in range(2)]
        x = rng.normal(size=len(names))
        spread = Figure(lambda w, x=x: np.sqrt((w * x**2).sum(axis=1) / w.sum(axis=1)), x.size)
        notes.append(figure_intervals({name: spread}, names)[name].note)
    assert notes == [f"fewer than {few} prompts: the interval may be too narrow", None]
