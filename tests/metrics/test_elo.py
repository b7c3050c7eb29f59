"""Elo: the update by hand, and that neither order of arrival nor side decides."""

from __future__ import annotations

import random

import pytest

from rlaif.metrics.elo import EloRating, elo_ratings
from rlaif.metrics.ranking import Comparison


def by_player(found: list[EloRating]) -> dict[str, float]:
    return {r.player: r.rating for r in found}


def test_one_win_moves_half_of_k() -> None:
    (best, worst) = elo_ratings([Comparison("p", "a", "b", 1.0)], 0)
    assert (best.player, best.rating, worst.rating) == ("a", 1002.0, 998.0)
    # One prompt says nothing of how ratings vary.
    assert best.low is None and best.high is None


def test_a_comparison_moves_ratings_by_its_weight() -> None:
    (best, worst) = elo_ratings([Comparison("p", "a", "b", 1.0, weight=0.5)], 0)
    assert (best.rating, worst.rating) == (1001.0, 999.0)


def test_two_battles_by_hand_and_a_tie_moves_nothing() -> None:
    # The second win of a counts 4 (1 - 1 / (1 + 10^(-4/400))): both orders are alike.
    twice = [Comparison("p", "a", "b", 1.0), Comparison("q", "a", "b", 1.0)]
    second = 4 * (1 - 1 / (1 + 10 ** (-4 / 400)))
    assert by_player(elo_ratings(twice, 0))["a"] == pytest.approx(1002.0 + second)
    assert by_player(elo_ratings([Comparison("p", "a", "b", 0.5)], 0)) == {"a": 1000, "b": 1000}


def drawn(count: int = 120) -> list[Comparison]:
    draw = random.Random(4)
    found = []
    for number in range(count):
        first, second = draw.sample("abcd", 2)
        better = draw.random() < 1 / (1 + 10 ** ((ord(first) - ord(second)) * 150 / 400))
        found.append(Comparison(f"p{number % 20}", first, second, float(better)))
    return found


def test_the_sum_of_ratings_stays() -> None:
    assert sum(by_player(elo_ratings(drawn(), 3)).values()) == pytest.approx(4000.0)


def test_order_of_arrival_changes_nothing_and_sides_are_alike() -> None:
    battles = drawn()
    turned = [Comparison(c.unit, c.second, c.first, 1 - c.prob) for c in battles]
    wanted = elo_ratings(battles, 3)
    assert elo_ratings(list(reversed(battles)), 3) == wanted
    # Another side is another comparison, so that orders are drawn anew: only the mean is alike.
    assert by_player(elo_ratings(turned, 3, orders=400)) == pytest.approx(
        by_player(elo_ratings(battles, 3, orders=400)), abs=0.5
    )


def test_a_seed_draws_orders_of_its_own() -> None:
    one, again, other = (by_player(elo_ratings(drawn(), seed, orders=2)) for seed in (3, 3, 4))
    assert one == again != other


def test_the_mean_over_orders_is_the_mean_of_plain_runs() -> None:
    battles = drawn(40)
    draw = random.Random(0)
    sums = dict.fromkeys("abcd", 0.0)
    for _ in range(2000):
        ratings = dict.fromkeys("abcd", 1000.0)
        for c in draw.sample(battles, len(battles)):
            expected = 1 / (1 + 10 ** ((ratings[c.second] - ratings[c.first]) / 400))
            ratings[c.first] += 4 * (c.prob - expected)
            ratings[c.second] -= 4 * (c.prob - expected)
        sums = {name: sums[name] + ratings[name] / 2000 for name in sums}
    assert by_player(elo_ratings(battles, 1, orders=500)) == pytest.approx(sums, abs=0.1)


def test_the_interval_is_the_jackknife_over_prompts() -> None:
    # Two prompts, each decided by one battle that all orders see alike: leaving one out gives
    # 1002 for a without the loss and 998 without the win, whose spread is that of two halves.
    battles = [Comparison("p", "a", "b", 1.0), Comparison("q", "a", "b", 0.0)]
    (found, _) = elo_ratings(battles, 0)
    assert found.low is not None and found.high is not None
    # SE^2 = 1/2 (2^2 + 2^2) = 4 and t of one degree of freedom is 12.706.
    assert found.high - found.low == pytest.approx(2 * 12.7062 * 2.0, rel=1e-4)
