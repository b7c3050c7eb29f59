"""Win rates equal alpaca-eval's; the ranking finds planted strengths; constant answers are seen."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.cli.data import _print_rates
from rlaif.compare.ranking import bradley_terry, connected
from rlaif.compare.winrate import Battle, WinRate, lc_minimal, win_rates
from rlaif.data.battles import read_battles
from rlaif.errors import ConfigError, RlaifError

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
    assert [(w.generator, w.win_rate, w.standard_error) for w in found] == [
        (w.generator, w.win_rate, w.standard_error) for w in full
    ]
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


def test_verdicts_that_follow_length_alone_are_levelled() -> None:
    draw = random.Random(3)
    gaps = np.asarray([draw.gauss(-60, 80) for _ in range(800)])
    probs = 1 / (1 + np.exp(2.0 * np.tanh(gaps / gaps.std(ddof=1))))
    raw = 100 * probs.mean()
    found = lc_minimal(probs, gaps, np.arange(800))
    assert found is not None
    assert raw > 60
    assert found[0] == pytest.approx(50.0, abs=0.5)


def test_length_controlled_error_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(20):
        gaps = rng.normal(0, 100, 300)
        truth = 1 / (1 + np.exp(-(0.6 - 1.0 * np.tanh(gaps / gaps.std(ddof=1)))))
        found = lc_minimal((rng.random(300) < truth).astype(float), gaps, np.arange(300))
        assert found is not None
        assert found[1] is not None
        inside += abs(found[0] - 100 / (1 + math.exp(-0.6))) < 1.96 * found[1]
    assert inside >= 16


def test_battles_of_one_prompt_are_no_more_evidence_than_one() -> None:
    rng = np.random.default_rng(4)
    gaps = rng.normal(0, 100, 200)
    probs = rng.random(200)
    alone = lc_minimal(probs, gaps, np.arange(200))
    thrice = lc_minimal(np.tile(probs, 3), np.tile(gaps, 3), np.tile(np.arange(200), 3))
    assert alone is not None and thrice is not None
    assert thrice[0] == pytest.approx(alone[0], abs=0.5)
    assert thrice[1] == pytest.approx(alone[1], rel=0.02)


def test_where_length_cannot_be_controlled() -> None:
    probs = np.asarray([1.0, 0.0, 1.0, 0.5, 0.25, 0.75])
    units = np.arange(10)
    same = lc_minimal(probs, np.full(6, 4.0), units[:6])
    assert same is not None
    assert same[0] == pytest.approx(100 * probs.mean())
    assert lc_minimal(probs[:4], np.arange(4.0), units[:4]) is None
    assert lc_minimal(np.ones(6), np.arange(6.0), units[:6]) is None
    one_win = lc_minimal(np.asarray([0.0] * 9 + [1.0]), np.arange(10.0) % 3, units)
    assert one_win is None or 0 <= one_win[0] <= 100


@pytest.mark.parametrize(("same", "flagged"), [(4, False), (5, True), (10, True)])
def test_a_constant_answer_is_flagged(same: int, flagged: bool) -> None:
    battles = [
        battle(str(i), 0.5, output="always this" if i < same else f"text {i}") for i in range(10)
    ]
    w = only(battles)
    assert w.constant == same / 10
    assert w.is_constant is flagged


def test_the_ranking_recovers_planted_strengths_within_its_intervals() -> None:
    draw = random.Random(5)
    truth = {"a": 0.0, "b": 1.0, "c": -0.5, "d": 2.0}
    fought = []
    for unit in range(400):
        first, second = draw.sample(sorted(truth), 2)
        prob = 1 / (1 + math.exp(truth[second] - truth[first]))
        fought.append((str(unit), first, second, float(draw.random() < prob)))
    found = bradley_terry(fought, anchor="a")
    assert [r.player for r in found] == ["d", "b", "a", "c"]
    for r in found:
        assert r.low <= 1000 + 400 / math.log(10) * truth[r.player] <= r.high, r
    assert bradley_terry(fought[::-1], anchor="a") == found
    assert bradley_terry(fought, anchor="a", seed=1) != found


def test_two_players_have_the_logit_of_their_win_rate_between_them() -> None:
    fought = [(str(i), "x", "y", 10 / 11) for i in range(1100)]
    ratings = {r.player: r.rating for r in bradley_terry(fought, anchor="y")}
    assert ratings["y"] == 1000
    assert ratings["x"] == pytest.approx(1400, abs=0.1)


def test_an_undefeated_player_stays_finite() -> None:
    first, second = bradley_terry([(str(i), "x", "y", 1.0) for i in range(50)])
    assert first.player == "x"
    assert 1000 < first.rating < 3000
    assert first.rating + second.rating == pytest.approx(2000)


def test_groups_that_never_met_are_not_ranked() -> None:
    fought = [("1", "a", "b", 1.0), ("1", "c", "d", 1.0)]
    with pytest.raises(RlaifError, match=r"never compared with each other: a, b; c, d"):
        bradley_terry(fought)
    assert connected("abc", [("a", "b"), ("b", "c")]) == [{"a", "b", "c"}]
    with pytest.raises(RlaifError, match="no comparison"):
        bradley_terry([])


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
    assert "LC-minimal" in table
    assert "57.14 ± 17.00" in table


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
    rated = [("p", "a", "b", 0.5)]
    _print_rates(win_rates(battles), bradley_terry(rated, resamples=5), None)
    assert "alone" in capsys.readouterr().out
