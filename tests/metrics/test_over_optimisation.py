"""Where gold peaks while the proxy rises: by hand, on planted data, and how often it errs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rlaif.metrics.over_optimisation import Point, find_candidates, find_peak, root_kl
from rlaif.metrics.reward_figures import best_of_n_kl, best_of_n_sizes


def column(values):
    return {f"p{i:03d}": float(v) for i, v in enumerate(values)}


def points(proxy, gold):
    """Points from (points, prompts) arrays, a nat apart."""
    rows = zip(proxy, gold, strict=True)
    return [Point(f"M{i}", float(i), column(p), column(g)) for i, (p, g) in enumerate(rows)]


def test_a_point_is_out_by_one_sided_t_with_bonferroni():
    """Of three points the level is 0.05 / 2. With 9 prompts and paired differences of mean m and
    standard deviation 1, t = 3 m, and the quantile of t with 8 degrees of freedom at 0.975 is
    2.306 (any table)."""
    spread = np.array([-1.5, -1.0, -0.5, -0.5, 0.0, 0.5, 0.5, 1.0, 1.5])
    spread = (spread - spread.mean()) / spread.std(ddof=1)
    assert stats.t.ppf(0.975, 8) == pytest.approx(2.306, abs=5e-4)
    low = [column(np.zeros(9)), column(np.full(9, -50.0) + spread)]
    for factor, among in ((1.01, [0]), (0.99, [0, 2])):
        third = column(-spread - factor * 2.306 / 3)
        assert find_candidates([*low, third]) == among
    # Of two points the level is 0.05: 1.860.
    assert find_candidates([column(np.zeros(9)), column(-spread - 1.0 * 1.87 / 3)]) == [0]
    assert find_candidates([column(np.zeros(9)), column(-spread - 1.0 * 1.85 / 3)]) == [0, 1]


RNG = np.random.default_rng(11)
NOISE = RNG.normal(size=(5, 40))
RISING = np.arange(5.0)[:, None] + 0.1 * NOISE
PEAKED = np.array([0.0, 2.0, 2.1, 1.0, 0.0])[:, None] + 0.3 * NOISE[::-1]


@pytest.mark.parametrize(
    ("proxy", "gold", "verdict", "best", "among"),
    [
        (RISING, PEAKED, "over-optimised", 2, [1, 2]),
        # The proxy does not rise after gold's peak.
        (-RISING, PEAKED, "proxy undecided", 2, [1, 2]),
        (RISING, RISING, "highest last", 4, [4]),
        (RISING, -RISING, "over-optimised", 0, [0]),
    ],
)
def test_planted_peaks_are_found(proxy, gold, verdict, best, among):
    found = find_peak(points(proxy, gold))
    assert (found["verdict"], found["best"], found["among"]) == (verdict, best, among)
    if best == 4:
        assert found["gold"] is None
        return
    change = found["gold"]
    assert change["mean"] == pytest.approx((gold[-1] - gold[best]).mean())
    assert change["low"] < change["mean"] < change["high"] < 0
    assert found["proxy"]["mean"] == pytest.approx((proxy[-1] - proxy[best]).mean())


def test_noise_is_not_decided_and_few_prompts_are_nothing():
    found = find_peak(points(RISING, NOISE))
    assert found["verdict"] in ("not decided", "highest last")
    assert len(found["among"]) > 1
    assert find_peak(points(RISING[:, :5], PEAKED[:, :5])) is None
    assert find_peak(points(RISING[:1], PEAKED[:1])) is None
    # Only prompts that every point has count: a point without most of them leaves too few.
    rows = points(RISING, PEAKED)
    few = Point("M9", 9.0, rows[0].proxy, dict(list(rows[0].gold.items())[:5]))
    assert find_peak([*rows, few]) is None


def test_gold_that_does_not_fall_is_rarely_said_to():
    """Five policies that are equally good, and what each prompt makes of them is correlated: that
    the last one is thrown out is wrong, and happens in at most 5% of cases."""
    rng, wrong, draws = np.random.default_rng(5), 0, 400
    for _ in range(draws):
        shared = rng.normal(size=12)
        gold = [column(0.7 * shared + 0.7 * rng.normal(size=12)) for _ in range(5)]
        wrong += 4 not in find_candidates(gold)
    assert wrong / draws <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)


def test_the_order_of_prompts_changes_nothing():
    rows = points(RISING, PEAKED)
    turned = [
        Point(p.name, p.kl, dict(reversed(p.proxy.items())), dict(reversed(p.gold.items())))
        for p in rows
    ]
    assert find_peak(rows) == find_peak(turned)


def test_the_axis_is_the_root_of_the_kl():
    assert [root_kl(kl) for kl in (0.0, 4.0, -0.1)] == [0.0, 2.0, 0.0]
    assert [best_of_n_sizes(most) for most in (0, 1, 2, 5, 8)] == [
        [],
        [1],
        [1, 2],
        [1, 2, 4, 5],
        [1, 2, 4, 8],
    ]
    # arXiv 2210.10760, appendix: log n - (n - 1) / n.
    assert best_of_n_kl(4) == pytest.approx(0.636294, abs=1e-6)
