"""Who meets next: the published gains by their golden values, and draws by seed."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rlaif.metrics.matchmaking import (
    DrawOptions,
    Fixture,
    Pairing,
    Played,
    draw_fixtures,
    information_gains,
    list_pairs,
    posterior_covariance,
    variance_gains,
)

PROMPTS = [f"p{n:02d}" for n in range(30)]


def played(
    battles: list[float], won: list[float] | None = None, squares: list[float] | None = None
) -> Played:
    counts = np.asarray(battles)
    wins = counts / 2 if won is None else np.asarray(won)
    return Played(counts, counts, wins, wins if squares is None else np.asarray(squares))


def options(pairing: Pairing = "information", explore: float = 0.0, least: int = 0) -> DrawOptions:
    return DrawOptions(pairing, explore, least, seed=7)


def draw(state: Played, count: int, chosen: DrawOptions, batch: int = 0) -> list[Fixture]:
    return draw_fixtures(state, [PROMPTS] * len(state.battles), count, chosen, batch)


def test_the_arenas_gain_by_its_golden_values() -> None:
    gains = variance_gains(np.ones(3), np.asarray([4.0, 100.0, 0.0]))
    assert gains[:2] == pytest.approx([0.0527864, 0.000496281], rel=1e-5)
    assert np.isinf(gains[2])


def test_the_gain_of_information_by_its_golden_values() -> None:
    # Independent strengths of variance 1/2 each: the difference has v = 1.
    pairs = list_pairs(2)
    for prob, wanted in ((0.5, 0.111572), (0.9, 0.043089)):
        (gain,) = information_gains(np.eye(2) / 2, np.asarray([prob]), pairs)
        assert gain == pytest.approx(wanted, abs=1e-6)


def test_a_hundred_even_battles_have_the_golden_standard_error() -> None:
    # METHODS: s.e. 0.2 logit, of the likelihood alone; the prior takes 1 / (1/0.04 + 1/2).
    covariance = posterior_covariance(np.asarray([100.0]), np.asarray([0.5]), list_pairs(2))
    spread = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert spread == pytest.approx(1 / (1 / 0.04 + 1 / 2))


def share(fixtures: list[Fixture], pair: tuple[int, int]) -> float:
    return sum((f.first, f.second) == pair for f in fixtures) / len(fixtures)


@pytest.mark.parametrize("pairing", ["information", "variance"])
def test_a_model_that_hardly_met_anyone_is_drawn_most(pairing: Pairing) -> None:
    # 0 and 1 have met 25 times, 2 has met each twice.
    state = played([25.0, 2.0, 2.0])
    fixtures = draw(state, 30, options(pairing))
    assert share(fixtures, (0, 1)) < 0.25
    even = draw(state, 30, options("uniform"))
    assert 0.15 < share(even, (0, 1)) < 0.55


def test_pairs_that_never_met_come_before_others_by_the_arenas_rule() -> None:
    fixtures = draw(played([3.0, 0.0, 0.0]), 2, options("variance"))
    assert {(f.first, f.second) for f in fixtures} == {(0, 2), (1, 2)}


def test_a_pair_that_is_decided_says_less_than_an_even_one() -> None:
    even, sure = played([8.0, 8.0, 8.0], [4.0, 4.0, 4.0]), played([8.0, 8.0, 8.0], [8.0, 4.0, 4.0])
    first = draw(even, 1, options())[0], draw(sure, 1, options())[0]
    chance = {}
    for name, state in (("even", even), ("sure", sure)):
        drawn = [draw(state, 1, options(), batch)[0] for batch in range(60)]
        chance[name] = [30 * f.chance for f in drawn if (f.first, f.second) == (0, 1)]
    assert len(set(np.round(chance["even"], 9))) == 1
    assert chance["even"][0] == pytest.approx(1 / 3)
    assert all(value < 1 / 3 for value in chance["sure"]) and first


def test_pending_battles_count() -> None:
    # Within one batch nothing is judged, yet the pairs share the draws.
    fixtures = draw(played([0.0] * 6), 24, options())
    counts = [share(fixtures, (int(a), int(b))) for a, b in list_pairs(4)]
    assert max(counts) <= 8 / 24 and min(counts) >= 1 / 24


def test_each_model_has_its_least_battles_first() -> None:
    fixtures = draw(played([9.0, 0.0, 0.0]), 6, options(least=5))
    assert all(2 in (f.first, f.second) for f in fixtures[:5])


def test_draws_depend_on_seed_and_batch_alone() -> None:
    state = played([4.0, 1.0, 2.0])
    wanted = draw(state, 12, options(explore=0.2))
    assert draw(state, 12, options(explore=0.2)) == wanted
    # What is drawn later in a batch changes nothing of what is drawn before.
    assert draw(state, 5, options(explore=0.2)) == wanted[:5]
    assert draw(state, 12, options(explore=0.2), batch=1) != wanted


def test_no_fixture_comes_twice_and_none_is_left_out() -> None:
    left = [["a", "b"], ["a"], []]
    fixtures = draw_fixtures(played([0.0] * 3), left, 10, options(explore=0.5), 0)
    found = sorted((f.first, f.second, f.prompt) for f in fixtures)
    assert found == [(0, 1, "a"), (0, 1, "b"), (0, 2, "a")]


@pytest.mark.parametrize("explore", [0.0, 0.3, 1.0])
def test_the_logged_chance_is_the_frequency_of_the_draw(explore: float) -> None:
    state = played([12.0, 2.0, 2.0])
    drawn = [draw(state, 1, options("variance", explore), batch)[0] for batch in range(1500)]
    logged: dict[tuple[int, int], float] = {}
    for f in drawn:
        logged[f.first, f.second] = f.chance * len(PROMPTS)
    assert sum(logged.values()) == pytest.approx(1.0)
    counts: NDArray[np.float64] = np.asarray([share(drawn, pair) for pair in sorted(logged)])
    assert counts == pytest.approx([logged[pair] for pair in sorted(logged)], abs=0.05)
