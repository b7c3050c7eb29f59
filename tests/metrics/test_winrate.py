"""Win rates equal alpaca-eval's; the ranking finds planted strengths; constant answers are seen."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from click.testing import CliRunner
from scipy import optimize, stats

from rlaif.cli import cli
from rlaif.cli.winrate import print_standings
from rlaif.core.errors import ConfigError, RlaifError
from rlaif.metrics.battles import read_battles
from rlaif.metrics.length_control import LengthControlled, lc_minimal, length_controlled
from rlaif.metrics.ranking import SCALE, Comparison, Rating, bradley_terry, connected_groups
from rlaif.metrics.winrate import (
    Battle,
    WinRate,
    compute_standings,
    find_repeats,
    win_rate_interval,
    win_rates,
)

# python -c '...' with alpaca-eval 0.6.6 and scikit-learn 1.9.1, for every generator:
#   glm_winrate.get_length_controlled_winrate(annotations, glm_name="length_controlled_minimal",
#                                             save_weights_dir=None)["length_controlled_winrate"]
# where glm_winrate.hf_hub_download gives a CSV of model, index and instruction_difficulty = 0.
LC_MINIMAL = {
    "example": 84.70951670200647,
    "claude-2.1": 32.405221386350036,
    "gpt-3.5-turbo-0301": 31.39730850095601,
    "claude-2.1_concise": 29.748459675630457,
    "gemma-7b-it": 13.002420970519585,
    "vicuna-13b-v1.5": 15.242576318859394,
    "oasst-rlhf-llama-33b": 9.948157946579766,
    "wizardlm-13b": 15.528513655214232,
    "alpaca-farm-ppo-human": 9.953043851502876,
    "phi-2-sft": 8.54691108850413,
    "alpaca-farm-ppo-sim-gpt4-20k": 19.322228408862223,
    "gemma-2b-it": 6.648626270406158,
    "text_davinci_001": 17.154352345449624,
    "alpaca-7b": 19.549396078011164,
}


def battle(
    prompt: str, prob: float | None, lengths: tuple[int, int] = (10, 10), output: str = ""
) -> Battle:
    return Battle(prompt, "base", "model", prob, lengths, ("b", output or prompt))


def only(battles: list[Battle]) -> WinRate:
    (found,) = win_rates(battles)
    return found


@pytest.fixture(scope="module")
def published(real_data: Path) -> tuple[list[Battle], dict[str, dict[str, str]]]:
    battles, skipped = read_battles(real_data / "alpaca_eval_gpt4_annotations.jsonl.gz")
    assert skipped == []
    with (real_data / "alpaca_eval_leaderboard.csv").open() as file:
        rows = {row[""]: row for row in csv.DictReader(file)}
    # The annotations call this model by the name of its prompt.
    rows["example"] = rows.pop("NullModel")
    return battles, rows


def test_the_published_figures_come_out(
    published: tuple[list[Battle], dict[str, dict[str, str]]],
) -> None:
    battles, rows = published
    found = {w.generator: w for w in win_rates(battles)}
    assert found.keys() == rows.keys() == LC_MINIMAL.keys()
    for name, row in rows.items():
        w = found[name]
        for key in ("win_rate", "standard_error", "discrete_win_rate"):
            assert getattr(w, key) == pytest.approx(float(row[key]), abs=1e-6), (name, key)
        for key in ("n_wins", "n_wins_base", "n_draws", "n_total"):
            assert getattr(w, key) == int(row[key]), (name, key)
        # Two of one model's outputs were never annotated, and are in its published length alone.
        assert w.avg_length == pytest.approx(int(row["avg_length"]) + 0.5, abs=1.1)
        assert w.lc_minimal == pytest.approx(LC_MINIMAL[name], abs=0.01), name
    assert [w.generator for w in found.values() if w.is_constant] == ["example"]


def test_without_the_baselines_outputs_only_lengths_are_unknown(
    published: tuple[list[Battle], dict[str, dict[str, str]]], real_data: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "annotations.jsonl.gz"
    alone.write_bytes((real_data / "alpaca_eval_gpt4_annotations.jsonl.gz").read_bytes())
    found = win_rates(read_battles(alone)[0])
    full = win_rates(published[0])
    assert [(w.generator, w.win_rate, w.n_wins) for w in found] == [
        (w.generator, w.win_rate, w.n_wins) for w in full
    ]
    assert {w.lc_note for w in found} == {"length cannot be controlled: lengths are unknown"}
    assert {w.lc_minimal for w in found} == {None}
    assert [w.is_constant for w in found] == [w.is_constant for w in full]


def test_counts_ties_and_missing_verdicts() -> None:
    w = only([battle(str(i), p) for i, p in enumerate((1.0, 0.0, 0.5, None))])
    assert (w.n_wins, w.n_wins_base, w.n_draws, w.n_total, w.n_missing) == (1, 1, 1, 3, 1)
    assert w.win_rate == w.discrete_win_rate == 50.0
    assert w.standard_error == pytest.approx(100 * 0.5 / math.sqrt(3))
    assert win_rates([battle("a", None)]) == []


def test_without_one_baseline_both_sides_count() -> None:
    battles = [
        Battle("p", "a", "b", 1.0, (1, 2), ("x", "y")),
        Battle("p", "b", "c", 1.0, (2, 3), ("y", "z")),
        Battle("p", "a", "c", 0.8, (1, 3), ("x", "z")),
    ]
    rates = {w.generator: w.win_rate for w in win_rates(battles)}
    assert rates == pytest.approx({"c": 90.0, "b": 50.0, "a": 10.0})


def controlled(probs: np.ndarray, gaps: np.ndarray) -> LengthControlled:
    return length_controlled(probs, gaps, np.arange(probs.size), np.ones(probs.size))


def test_verdicts_that_follow_length_alone_are_levelled() -> None:
    draw = random.Random(3)
    gaps = np.asarray([draw.gauss(-60, 80) for _ in range(800)])
    probs = 1 / (1 + np.exp(2.0 * np.tanh(gaps / gaps.std(ddof=1))))
    raw = 100 * probs.mean()
    assert raw > 60
    assert lc_minimal(probs, gaps) == pytest.approx(50.0, abs=0.5)
    few = controlled(probs[:150], gaps[:150])
    assert few.minimal is None and few.small_n is not None
    assert abs(few.small_n - 50) < 6


@pytest.mark.parametrize("size", [20, 100])
def test_few_battles_are_controlled_by_the_penalised_form(size: int) -> None:
    """The maximum and the profile of the likelihood that the module states, by scipy."""
    rng = np.random.default_rng(size)
    gaps = rng.normal(0, 100, size)
    probs = (rng.random(size) < 0.3).astype(float)
    tanh = np.tanh(gaps / gaps.std(ddof=1))

    def loss(weights: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-(weights[0] * tanh + weights[1])))
        fitted = float(probs @ np.log(p) + (1 - probs) @ np.log(1 - p))
        return -(fitted + math.log((p * (1 - p)).sum()) / 2 - weights[0] ** 2 / 2)

    best = optimize.minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-10})

    def fallen(end: float) -> float:
        rest = optimize.minimize_scalar(lambda w: loss(np.asarray([w, end])), tol=1e-12)
        return 2 * (rest.fun - best.fun) - stats.t.ppf(0.975, size - 2) ** 2

    found = controlled(probs, gaps)
    ends = [optimize.brentq(fallen, best.x[1], best.x[1] + side * 10) for side in (-1, 1)]
    expected = [100 / (1 + math.exp(-x)) for x in (best.x[1], *ends)]
    # A unit of one battle each has a design effect near 1; above 1 it widens the interval.
    assert found.small_n == pytest.approx(expected[0], abs=1e-4)
    assert found.low is not None and found.high is not None
    assert expected[1] - 4 < found.low < expected[1] + 1e-3
    assert expected[2] - 1e-3 < found.high < expected[2] + 4


def test_from_200_battles_on_the_formula_is_alpaca_evals() -> None:
    rng = np.random.default_rng(8)
    gaps, probs = rng.normal(0, 100, 200), rng.random(200)
    whole, less = controlled(probs, gaps), controlled(probs[:199], gaps[:199])
    assert whole.small_n is None and whole.minimal == lc_minimal(probs, gaps)
    assert less.minimal is None and less.small_n is not None
    halves = length_controlled(probs, gaps, np.repeat(np.arange(100), 2), np.full(200, 0.5))
    assert halves.minimal is None, "200 rows that are 100 battles are no 200 battles"


def test_battles_of_one_prompt_are_no_more_evidence_than_one() -> None:
    rng = np.random.default_rng(4)
    gaps, probs = rng.normal(0, 100, 60), rng.random(60).round()
    alone = controlled(probs, gaps)
    units = np.tile(np.arange(60), 3)
    thrice = length_controlled(np.tile(probs, 3), np.tile(gaps, 3), units, np.full(180, 1 / 3))
    # The spread of 180 gaps has another divisor than that of 60.
    for name in ("small_n", "low", "high"):
        assert getattr(thrice, name) == pytest.approx(getattr(alone, name), abs=0.5), name


@pytest.mark.parametrize(
    ("gaps", "why"),
    [
        ([-3.0, -1.0, -2.0, -5.0], "every answer is longer"),
        ([3.0, 1.0, 2.0, 5.0], "every answer is shorter"),
        ([-3.0, 0.0, 0.0, -5.0], "no answer is shorter"),
        ([3.0, 0.0, 0.0, 5.0], "no answer is longer"),
        ([0.0, 0.0, 0.0, 0.0], "all answers are of equal length"),
    ],
)
@pytest.mark.parametrize("times", [1, 60])
def test_gaps_of_one_sign_cannot_be_controlled(gaps: list[float], why: str, times: int) -> None:
    probs = np.tile([1.0, 0.0, 1.0, 0.5], times)
    found = controlled(probs, np.tile(gaps, times))
    assert found == LengthControlled(note=f"length cannot be controlled: {why}")


def test_one_battle_or_one_winner_has_a_raw_rate_alone() -> None:
    one = only([battle("p", 1.0, (10, 20))])
    assert (one.win_rate, one.low, one.high) == (100.0, 0.0, 100.0)
    assert one.lc_note == "length cannot be controlled: there is one battle"
    undefeated = only([battle(str(i), 1.0, (10, 5 + i)) for i in range(12)])
    assert undefeated.lc_minimal is undefeated.lc_small_n is None
    assert undefeated.lc_note == "length cannot be controlled: one side won every battle"
    # Wilson's interval with n = 12 and t of 11 degrees of freedom: n / (n + t^2).
    t = stats.t.ppf(0.975, 11)
    assert undefeated.low == pytest.approx(100 * 12 / (12 + t**2))
    assert undefeated.high == pytest.approx(100)


def test_the_interval_of_a_win_rate_is_wilsons_with_an_effective_n() -> None:
    """K1 by hand: 3 wins of 4 prompts, one battle each."""
    probs = np.asarray([1.0, 1.0, 1.0, 0.0])
    m, c, t = 0.75, 4, stats.t.ppf(0.975, 3)
    n = min(max(m * (1 - m) / ((3 * probs.var(ddof=1) + m * (1 - m)) / c**2), c), 8 * c)
    middle = (m + t**2 / (2 * n)) / (1 + t**2 / n)
    half = t / (1 + t**2 / n) * math.sqrt(m * (1 - m) / n + t**2 / (4 * n**2))
    found = win_rate_interval(probs, np.arange(4))
    assert (found.low, found.high) == (pytest.approx(middle - half), pytest.approx(middle + half))
    # Rows of one prompt are one unit, however many there are.
    again = win_rate_interval(np.repeat(probs, 5), np.repeat(np.arange(4), 5))
    assert (again.mean, again.low, again.high) == (m, pytest.approx(found.low), found.high)


@pytest.mark.parametrize(("same", "flagged"), [(4, False), (5, True), (10, True)])
def test_a_constant_answer_is_flagged(same: int, flagged: bool) -> None:
    battles = [
        battle(str(i), 0.5, output="always this" if i < same else f"text {i}") for i in range(10)
    ]
    w = only(battles)
    assert w.constant == same / 10
    assert w.is_constant is flagged


def games(results: list[float], first: str = "x", second: str = "y") -> list[Comparison]:
    return [Comparison(str(i), first, second, prob) for i, prob in enumerate(results)]


def rated(comparisons: list[Comparison], anchor: str | None = None) -> dict[str, Rating]:
    return {r.player: r for r in bradley_terry(comparisons, anchor)}


def ends(rating: Rating) -> tuple[float, float]:
    assert rating.low is not None and rating.high is not None
    return rating.low, rating.high


def test_the_ranking_recovers_planted_strengths_within_its_intervals() -> None:
    draw = random.Random(5)
    truth = {"a": 0.0, "b": 1.0, "c": -0.5, "d": 2.0}
    fought = []
    for unit in range(400):
        first, second = draw.sample(sorted(truth), 2)
        prob = 1 / (1 + math.exp(truth[second] - truth[first]))
        fought.append(Comparison(str(unit), first, second, float(draw.random() < prob)))
    found = bradley_terry(fought, anchor="a")
    assert [r.player for r in found] == ["d", "b", "a", "c"]
    for r in found:
        if r.is_anchor:
            assert (r.rating, r.low, r.high) == (1000, None, None)
            continue
        low, high = ends(r)
        assert low <= 1000 + SCALE * truth[r.player] <= high, r
    assert bradley_terry(fought[::-1], anchor="a") == found


def test_an_undefeated_player_has_a_finite_rating_and_interval() -> None:
    """Two players are one coefficient: Jeffreys' estimate is the logit of 10.5 in 11, and the ends
    are where 10 log p + (log p (1 - p)) / 2 has fallen by t^2 / 2 of 9 degrees of freedom."""

    def value(theta: float) -> float:
        p = 1 / (1 + math.exp(-theta))
        return 10 * math.log(p) + math.log(p * (1 - p)) / 2

    top = math.log(10.5 / 0.5)
    fall = stats.t.ppf(0.975, 9) ** 2
    low, high = (
        optimize.brentq(lambda x: 2 * (value(top) - value(x)) - fall, top, top + side * 15)
        for side in (-1, 1)
    )
    strong = rated(games([1.0] * 10), "y")["x"]
    assert strong.rating == pytest.approx(1000 + SCALE * top)
    assert ends(strong) == pytest.approx((1000 + SCALE * low, 1000 + SCALE * high), abs=0.01)
    assert ends(strong) == pytest.approx((1132, 2595), abs=0.6)
    weak = rated(games([0.0] * 10), "y")["x"]
    assert ends(weak) == pytest.approx((2000 - ends(strong)[1], 2000 - ends(strong)[0]), abs=0.01)


@pytest.mark.parametrize("count", [2, 3, 6, 50])
def test_no_interval_of_a_player_has_zero_width(count: int) -> None:
    for results in ([1.0] * count, [0.0] * count, [0.5] * count, [0.5] * (count - 1) + [1.0]):
        for player in rated(games(results)).values():
            low = -math.inf if player.low is None else player.low
            high = math.inf if player.high is None else player.high
            assert low + 1 < player.rating < high - 1
    one = rated(games([1.0]), "y")["x"]
    assert (one.low, one.high, one.prompts) == (None, None, 1), "one prompt sets no limit"


def test_ratings_equal_firths_logistic_regression() -> None:
    """Four players, some undefeated: the score that Firth (1993) adds half the leverages to is 0,
    with the leverages of statsmodels' weighted fit."""
    rng = np.random.default_rng(2)
    names = ["a", "b", "c", "d"]
    fought = []
    for i in range(40):
        first, second = rng.choice(4, 2, replace=False)
        wins = 1.0 if 3 in (first, second) else float(rng.random() < 0.5)
        fought.append(Comparison(str(i), *(names[k] for k in sorted((first, second))[::-1]), wins))
    found = rated(fought, "a")
    theta = np.asarray([(found[name].rating - 1000) / SCALE for name in names])
    x = np.asarray([np.eye(4)[names.index(c.first)] - np.eye(4)[names.index(c.second)]
                    for c in fought])[:, 1:]  # fmt: skip
    won = np.asarray([c.prob for c in fought])
    p = 1 / (1 + np.exp(-(x @ theta[1:])))
    model = sm.GLM(won, x, family=sm.families.Binomial())
    leverage = model.fit(start_params=theta[1:], maxiter=0).get_hat_matrix_diag()
    assert x.T @ (won - p + leverage * (0.5 - p)) == pytest.approx(np.zeros(3), abs=1e-6)
    assert theta[3] == theta.max()


def test_rows_that_repeat_narrow_no_interval() -> None:
    once = games([1.0, 1.0, 0.0, 1.0, 0.5, 1.0, 1.0, 0.0])
    for fought in (once, games([1.0] * 8)):
        thrice = [c._replace(weight=1 / 3) for c in fought for _ in range(3)]
        alone, again = rated(fought, "y")["x"], rated(thrice, "y")["x"]
        assert again.rating == pytest.approx(alone.rating, abs=1e-3)
        assert ends(again) == pytest.approx(ends(alone), abs=0.01)
        # Other answers to the same prompts are more battles, and hardly more evidence.
        samples = [c for c in fought for _ in range(3)]
        low, high = ends(rated(samples, "y")["x"])
        assert high - low > 0.7 * (ends(alone)[1] - ends(alone)[0])


def test_two_players_have_the_logit_of_their_win_rate_between_them() -> None:
    fought = games([10 / 11] * 1100)
    ratings = rated(fought, "y")
    assert ratings["y"].rating == 1000
    assert ratings["x"].rating == pytest.approx(1400, abs=1)


def test_groups_that_never_met_each_have_a_ranking() -> None:
    fought = [Comparison("1", "a", "b", 1.0), Comparison("1", "c", "d", 1.0)]
    with pytest.raises(RlaifError, match=r"never compared with each other: a, b; c, d"):
        bradley_terry(fought)
    assert connected_groups("abc", [("a", "b"), ("b", "c")]) == [{"a", "b", "c"}]
    with pytest.raises(RlaifError, match="no comparison"):
        bradley_terry([])
    battles = [
        *(Battle(f"p{i}", "a", b, 0.9, (1, 2), ("x", b)) for i in range(3) for b in "bc"),
        *(Battle(f"p{i}", "d", "e", 0.2, (1, 2), ("x", "y")) for i in range(3)),
        Battle("p", "a", "nobody", None, (1, 2), ("x", "y")),
    ]
    large, small = compute_standings(battles)
    assert (large.baseline, small.baseline) == ("a", "d")
    assert [w.generator for w in large.win_rates] == ["b", "c"]
    assert [r.player for r in small.ratings] == ["d", "e"]
    assert small.win_rates[0].win_rate == pytest.approx(20)


def annotations(path: Path, preferences: list[float | None]) -> Path:
    rows = [
        {
            "instruction": f"Say {i}.",
            "output_1": "one" * (i % 3 + 1),
            "generator_1": "base",
            "output_2": "two" * (i % 4 + 1),
            "generator_2": "mine",
            "preference": preference,
        }
        for i, preference in enumerate(preferences)
    ]
    path.write_text(json.dumps(rows))
    return path


def test_the_command_prints_json_and_a_table(tmp_path: Path) -> None:
    path = annotations(tmp_path / "annotations.json", [2, 1, 1.5, 2, 2, None, 1, 0])
    done = CliRunner().invoke(cli, ["winrate", str(path), "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    mine = found["generators"]["mine"]
    assert found["baseline"] == "base"
    assert (mine["n_wins"], mine["n_wins_base"], mine["n_draws"], mine["n_missing"]) == (3, 2, 2, 1)
    assert mine["win_rate"] == pytest.approx(100 * 4 / 7)
    assert [r["player"] for r in found["ranking"]] == ["mine", "base"]
    table = CliRunner().invoke(cli, ["winrate", str(path)], catch_exceptions=False).stdout
    assert "LC (small n)" in table and "LC-minimal" not in table
    assert f"57.14 [{mine['low']:.2f}, {mine['high']:.2f}]" in table
    assert "3-2-2" in table
    assert "1000 (anchor)" not in table, "the baseline has no row"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = annotations(tmp_path / "annotations.json", [2, 7])
    with pytest.raises(ConfigError, match=r"annotations\.json: row 2: preference is 7; from 1"):
        read_battles(path)
    battles, skipped = read_battles(path, on_error="skip")
    assert (len(battles), len(skipped)) == (1, 1)
    nameless = tmp_path / "pairs.jsonl"
    nameless.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(ConfigError, match=r"pairs\.jsonl:1: nobody is named as the author"):
        read_battles(nameless)


def test_without_one_baseline_battles_of_a_prompt_go_together() -> None:
    """Every verdict four times over says no more than once."""
    verdicts = [("a", "b", 0.9), ("b", "a", 0.7), ("a", "b", 0.2), ("b", "a", 0.4)]

    def battles(times: int) -> list[Battle]:
        return [
            Battle(f"p{i}", first, second, prob, (1, 2), ("x", f"{i}"))
            for i, (first, second, prob) in enumerate(verdicts)
            for _ in range(times)
        ]

    once = {w.generator: w.standard_error for w in win_rates(battles(1))}
    probs = np.asarray([0.9, 0.3, 0.2, 0.6])
    assert once["b"] == pytest.approx(100 * probs.std(ddof=1) / 2)
    for rate in win_rates(battles(4)):
        assert rate.standard_error == pytest.approx(once[rate.generator])


def test_a_generator_that_met_itself_alone_is_shown_without_a_rating(
    capsys: pytest.CaptureFixture[str],
) -> None:
    battles = [
        Battle("p", first, second, 0.7, (1, 2), ("x", "y"))
        for first, second in (("a", "b"), ("b", "a"), ("alone", "alone"))
    ]
    print_standings(compute_standings(battles))
    shown = capsys.readouterr().out
    assert "alone" in shown and "2 groups of generators never met" in shown


def test_repeated_rows_are_named_and_are_one_unit(tmp_path: Path) -> None:
    preferences: list[float | None] = [2, 1, 2, 2, 1.5, 2, 1, 2]
    path = annotations(tmp_path / "once.json", preferences)
    rows = json.loads(path.read_text())
    twice = tmp_path / "twice.json"
    twice.write_text(json.dumps(rows + rows))

    def run(source: Path) -> tuple[dict[str, Any], str]:
        done = CliRunner().invoke(cli, ["winrate", str(source), "--json"], catch_exceptions=False)
        return json.loads(done.stdout), done.stderr

    (alone, quiet), (again, said) = run(path), run(twice)
    assert quiet == ""
    assert "one battle of base and mine" in said and "row 1," in said and "row 9" in said
    assert "16 rows are 8 battles" in said
    assert len(again["repeated"]) == 8 and alone["repeated"] == []
    mine, both = (result["generators"]["mine"] for result in (alone, again))
    assert both["n_repeated"] == 8
    for name in ("win_rate", "low", "high", "standard_error"):
        assert both[name] == pytest.approx(mine[name]), name
    for name in ("lc_small_n", "lc_low", "lc_high"):
        assert both[name] == pytest.approx(mine[name], abs=1.5), name
    for one, two in zip(alone["ranking"], again["ranking"], strict=True):
        assert one == pytest.approx(two, abs=0.1)


def test_a_pair_in_both_orders_is_one_battle() -> None:
    there = Battle("p", "a", "b", 0.9, (1, 2), ("x", "y"))
    back = there.swapped()
    assert back is not None
    assert find_repeats([there, back]) == [[there, back]]
    assert find_repeats([there, Battle("p", "a", "b", 0.9, (1, 2), ("x", "z"))]) == []


def test_a_file_without_a_verdict_says_so(tmp_path: Path) -> None:
    path = annotations(tmp_path / "annotations.json", [None, None])
    failed = CliRunner().invoke(cli, ["winrate", str(path)]).exception
    assert isinstance(failed, RlaifError) and "no comparison has a verdict" in str(failed)
