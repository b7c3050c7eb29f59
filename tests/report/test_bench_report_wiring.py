"""Two judges and a baseline whose figures are all different: what the tables and sentences of
judge-bench and reward-bench say of each."""

from __future__ import annotations

from typing import Any

import pytest
from rich.table import Table
from rich.text import Text

from rlaif.metrics.intervals import IntervalJson
from rlaif.report.bench import (
    attack_rows,
    attack_tables,
    baseline_words,
    bench_tables,
    calibration_words,
    compare_on_both,
    cost_words,
    failed_words,
    silenced_words,
    subset_tables,
    uncounted_words,
    votes_words,
)
from rlaif.report.reward import reward_tables, reward_words


def interval(mean: float, **more: Any) -> IntervalJson:
    found: Any = {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "n": 40} | more
    return found  # type: ignore[no-any-return]


def attack(success: float, attacked: int, missing: int) -> dict[str, Any]:
    share = missing / attacked
    counts = {"attacked": attacked, "missing": missing, "missing_share": share}
    return {"success": interval(success), "wins": interval(success / 2), **counts}


def judge(place: int, baseline: bool = False, **more: Any) -> dict[str, Any]:
    """A row whose figures lie `place` hundredths above those of the first judge."""
    step = place / 100
    return {
        "agreement": 0.7 + step, "low": 0.6 + step, "high": 0.8 + step, "n": 90 + place,
        "ties": 5 + place, "baseline": baseline, "graded": place != 1,
        "agreement_half": interval(0.65 + step), "kappa": interval(0.4 + step),
        "same_slot": interval(0.1 + step), "coverage": interval(0.9 + step),
        "calibration_error": interval(0.05 + step, n=80 + place),
        "calibration_detectable": 0.15 + step,
        "subsets": {
            "x": {"agreement": interval(0.3 + step), "tie_rate": interval(0.2 + step)},
            "y": {"agreement": interval(0.5 + step)},
        },
        "attacks": {}, "notes": [], "failures": {}, "reliability": [],
        "total": {"calls": 0.0, "seconds": None, "prompt_tokens": None, "new_tokens": None,
                  "money": None},
    } | more  # fmt: skip


TOTAL = {"calls": 11.0, "seconds": 12.0, "prompt_tokens": 13.0, "new_tokens": 14.0, "money": 15.0}
RESULT: dict[str, Any] = {
    "pairs": {"name": "some", "n": 120, "prompts": 60, "subsets": {"x": 70, "y": 50}},
    "judges": {
        "one": judge(
            0,
            attacks={"pad": attack(0.25, 20, 3), "beg": None},
            total=TOTAL,
            calls_per_pair=interval(2.0),
            new_tokens_per_pair=interval(7.0),
            prompt_tokens_per_pair=interval(6.0),
            wall_seconds_per_pair=0.5,
            notes=["a note on one"],
        ),
        "two": judge(
            1,
            attacks={"pad": attack(0.75, 30, 0), "beg": attack(0.5, 10, 4)},
            failures={"timed out": 6},
        ),
        "longer": judge(-9, baseline=True),
        "first": judge(-20, baseline=True),
    },
    "comparisons": [
        {
            "first": "one", "second": "longer", "n": 33, "first_right": 0.6,
            "second_right": 0.4, "difference": interval(0.2),
        },
        {
            "first": "longer", "second": "two", "n": 44, "first_right": 0.55,
            "second_right": 0.35, "difference": interval(0.2),
        },
    ],
    "effective_votes": {"judges": ["one", "two"], **interval(1.5)},
    "uncounted": {"far": {"answers": 8, "estimated_cost": 2.5}},
}  # fmt: skip


def cells_of(table: Table) -> list[list[str]]:
    columns = [[str(c).replace("\n", " ") for c in column.cells] for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def test_the_headline_has_each_judges_own_figures_in_their_columns() -> None:
    headline, subsets, attacks, *words = bench_tables(RESULT)
    assert isinstance(headline, Table) and isinstance(subsets, Table) and isinstance(attacks, Table)
    headings = [str(column.header) for column in headline.columns]
    assert headings[:4] == ["judge", "agreement", "n", "ties"]
    rows = {row[0]: dict(zip(headings, row, strict=True)) for row in cells_of(headline)}
    for name, place in (("one", 0), ("two", 1), ("longer", -9)):
        step = place / 100
        assert rows[name]["agreement"].startswith(f"{0.7 + step:.3f}")
        assert (rows[name]["n"], rows[name]["ties"]) == (str(90 + place), str(5 + place))
        assert rows[name]["kappa"].startswith(f"{0.4 + step:.3f}")
    assert [row.style for row in headline.rows] == ["", "", "dim", "dim"]
    assert str(headline.title).startswith("some: 120 pairs, 60 prompts")
    assert [str(c.header) for c in subsets.columns] == ["", "one", "two", "longer", "first"]
    firsts = [[cell.split()[0] for cell in row] for row in cells_of(subsets)]
    assert firsts == [
        ["x", "0.300", "0.310", "0.210", "0.100"],
        ["y", "0.500", "0.510", "0.410", "0.300"],
    ]
    firsts = [[cell.split()[0] for cell in row] for row in cells_of(attacks)]
    assert firsts == [["pad", "0.250", "0.750", "–", "–"], ["beg", "–", "0.500", "–", "–"]]
    said = [str(word) for word in words if isinstance(word, Text)]
    assert "a note on one" in said


def test_figures_of_subsets_and_attacks_keep_their_judges() -> None:
    by_name = {column.name: rows for column, rows in subset_tables(RESULT)}
    assert set(by_name) == {"agreement", "tie_rate"}
    assert [i and i["mean"] for i in by_name["tie_rate"]["x"]] == pytest.approx(
        [0.2, 0.21, 0.11, 0.0]
    )
    assert by_name["tie_rate"]["y"] == [None] * 4
    wins = attack_rows(RESULT, "wins")
    assert [i and i["mean"] for i in wins["pad"]] == [0.125, 0.375, None, None]
    assert [column.name for column, _ in attack_tables(RESULT)] == ["success", "wins"]


def test_each_judge_is_compared_with_the_best_baseline_from_its_own_side() -> None:
    one, two = baseline_words(RESULT)
    assert one.startswith(
        "On the 33 pairs that both decided, one agrees with 0.600 of the labels and beats the "
        "best baseline, longer, with 0.400 (+0.200"
    )
    assert two.startswith(
        "On the 44 pairs that both decided, two agrees with 0.350 of the labels and is worse than "
        "the best baseline, longer, with 0.550 (-0.200"
    )
    found = compare_on_both(RESULT, "longer", "two")
    assert found is not None and found[:3] == (44, 0.55, 0.35)


def test_costs_calibration_votes_and_failures_name_their_judge_and_number() -> None:
    assert cost_words(RESULT) == [
        "one: 11 calls, 12 seconds of calls, 13 tokens read, 14 written, money 15 in all; 2 calls, "
        "6 tokens read, 7 written, 0.5 seconds by the clock per pair."
    ]
    plain, verdicts, graded = calibration_words(RESULT)
    assert plain.startswith("one: its calibration error is 0.050") and "; 80 pairs" in plain
    assert "tell one of 0.150 from none" in plain
    assert verdicts.startswith("two: no graded probabilities")
    assert graded.startswith("two: its calibration error is 0.060") and "; 81 pairs" in graded
    [votes] = votes_words(RESULT)
    assert votes.startswith("2 judges (one, two) are worth 1.500")
    assert silenced_words(RESULT) == [
        "one: pad left 3 of 20 attacked pairs (15.0%) without a verdict.",
        "two: beg left 4 of 10 attacked pairs (40.0%) without a verdict.",
    ]
    [uncounted] = uncounted_words(RESULT)
    assert uncounted.startswith("far: 8 answers without") and "at most 2.5 was paid" in uncounted
    [failed] = failed_words(RESULT)
    assert failed.startswith("two: ") and "6" in failed and "timed out" in failed


REWARD: dict[str, Any] = {
    "name": "rm",
    "pairs": {"n": 50},
    "figures": {"accuracy": interval(0.8, n=48)},
    "accuracy_by": {"subset": {"x": interval(0.7, n=30), "y": interval(0.9, n=18)}},
    "learning_curve": [
        {"pairs": 10, "accuracy": interval(0.55, n=47)},
        {"pairs": 40, "accuracy": interval(0.65, n=46)},
    ],
    "best_of_n": [
        {"n": 1, "kl": 0.0, "proxy": interval(0.1), "gold": interval(0.3)},
        {"n": 2, "kl": 0.25, "proxy": interval(0.2), "gold": interval(0.6)},
        {"n": 4, "kl": 0.5, "proxy": interval(0.4), "gold": interval(0.5)},
    ],
    "staleness": {
        "oldest": {**interval(0.9), "round": 1}, "newest": {**interval(0.6), "round": 3},
        "stale": True,
    },
    "label_noise": {"share": 0.125},
}  # fmt: skip


def test_a_reward_models_tables_and_sentences_have_its_own_numbers() -> None:
    tables = [t for t in reward_tables(REWARD) if isinstance(t, Table)]
    headline, subset, curve, best = tables
    assert str(headline.title).startswith("rm: 50 pairs")
    assert [(row[0].split()[0], row[1][:5], row[2]) for row in cells_of(headline)] == [
        ("accuracy", "0.800", "48")
    ]
    assert [(row[0], row[1][:5], row[2]) for row in cells_of(subset)] == [
        ("x", "0.700", "30"),
        ("y", "0.900", "18"),
    ]
    assert [(row[0], row[1][:5], row[2]) for row in cells_of(curve)] == [
        ("10", "0.550", "47"),
        ("40", "0.650", "46"),
    ]
    assert [(row[0], row[1][:5], row[2][:5], row[3][:5]) for row in cells_of(best)] == [
        ("1", "0.000", "0.100", "0.300"),
        ("2", "0.250", "0.200", "0.600"),
        ("4", "0.500", "0.400", "0.500"),
    ]
    stale, noise, gold = reward_words(REWARD)
    assert stale.startswith("Accuracy is 0.900") and " on round 1 and 0.600" in stale
    assert " on round 3: it is stale" in stale
    assert noise.startswith("At least 12.5% of the training labels look wrong")
    assert gold.startswith("Gold is highest at best of 2 and lower at 4")
