"""A page over seeds and arms, and what it claims."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rlaif.metrics import metrics
from rlaif.metrics.metrics import Values
from rlaif.metrics.pooled import seeds_interval
from rlaif.report.build import build_report
from rlaif.report.merged import claim_words, make_page, primary_figures
from rlaif.report.rows import metric_rows
from rlaif.report.table import summary_table
from rlaif.report.view import RoundRow, RunView

Stored = dict[tuple[str, int, int], dict[str, Values]]


def made(
    seeds: int, gains: Mapping[str, float], arms: tuple[str, ...] = ("main",), prompts: int = 40
) -> tuple[list[RoundRow], Stored]:
    """Rounds 0 and 1 of every seed and arm, from values by prompt, which are kept beside."""
    rng = np.random.default_rng(1)
    names = [f"p{i:02d}" for i in range(prompts)]
    rounds: list[RoundRow] = []
    stored: Stored = {}
    for seed in range(seeds):
        base = {name: rng.uniform(0.3, 0.6, prompts) for name in gains}
        for arm in arms:
            for number in (0, 1):
                moved = {
                    name: np.clip(base[name] + number * rng.normal(gain, 0.1, prompts), 0, 1)
                    for name, gain in gains.items()
                }
                values = {n: dict(zip(names, v.tolist(), strict=True)) for n, v in moved.items()}
                stored[arm, seed, number] = values
                old = stored[arm, seed, 0]
                deltas = (
                    {"initial": metrics.compute_differences({**values}, {**old})} if number else {}
                )
                rounds.append(
                    RoundRow(
                        arm=arm,
                        seed=seed,
                        round=number,
                        policy_in="M0",
                        policy_out=f"M{number}",
                        counts={},
                        metrics={
                            "metrics": metrics.compute_intervals({**values}),
                            "deltas": deltas,
                        },
                    )
                )
    return rounds, stored


def page_of(rounds: list[RoundRow], stored: Stored, **given: Any) -> Any:
    """The page whose values are those that were stored."""
    options = {"comparisons": [], "named": None, "trained": ["j"]} | given
    return make_page(rounds, values=lambda a, s, n: stored.get((a, s, n), {}), **options)


def test_a_cell_over_seeds_is_crossed_with_prompts() -> None:
    rounds, stored = made(4, {"score/j": 0.1})
    page = page_of(rounds, stored)
    row = next(row for row in metric_rows(page.rounds) if row.name == "score/j")
    changes = [
        {
            p: stored["main", s, 1]["score/j"][p] - v
            for p, v in stored["main", s, 0]["score/j"].items()
        }
        for s in range(4)
    ]
    expected = seeds_interval(changes, 0.0)
    assert expected is not None
    before = [np.mean(list(stored["main", s, 0]["score/j"].values())) for s in range(4)]
    assert row.cells[1].delta == {
        **expected.to_json(),
        "old": pytest.approx(float(np.mean(before))),
    }
    # The seeds' own extremes are no interval.
    means = [np.mean(list(by.values())) for by in changes]
    assert row.cells[1].delta["low"] != pytest.approx(min(means))


def test_the_win_rate_and_the_factor_are_crossed_too() -> None:
    rounds, stored = made(3, {"score/j": 0.1, "length/words": 0.2})
    change = page_of(rounds, stored).rounds[-1]["metrics"]["deltas"]["initial"]
    wins = [r["metrics"]["deltas"]["initial"]["win_rate/j"]["mean"] for r in rounds if r["round"]]
    assert change["win_rate/j"]["mean"] == pytest.approx(np.mean(wins))
    factors = [
        np.log(r["metrics"]["deltas"]["initial"]["length_factor/words"]["mean"])
        for r in rounds
        if r["round"]
    ]
    assert change["length_factor/words"]["mean"] == pytest.approx(np.exp(np.mean(factors)))
    low, high = (change["length_factor/words"][end] for end in ("low", "high"))
    assert 1 < low < change["length_factor/words"]["mean"] < high


def test_a_win_rate_over_seeds_is_tested_against_one_half() -> None:
    changes = page_of(*made(4, {"score/j": 0.0})).rounds[-1]["metrics"]["deltas"]["initial"]
    for name, null in (("win_rate/j", 0.5), ("score/j", 0.0)):
        assert changes[name]["low"] < null < changes[name]["high"]
        assert changes[name]["p"] > 0.05


def test_two_seeds_show_both_values_and_claim_nothing() -> None:
    page = page_of(*made(2, {"score/j": 0.3}))
    change = page.rounds[-1]["metrics"]["deltas"]["initial"]["score/j"]
    assert change["low"] is None and change["note"].startswith("two seeds: 0.2944, ")
    assert page.claims.standing["main|score/j"] == "none"


def test_seeds_that_end_in_different_rounds_are_together_in_the_last() -> None:
    rounds, stored = made(2, {"score/j": 0.1})
    stored["main", 0, 2] = stored["main", 0, 1]
    longer = next(row for row in rounds if row["seed"] == 0 and row["round"] == 1)
    page = page_of([*rounds, RoundRow(**{**longer, "round": 2, "policy_out": "M2"})], stored)
    assert [row["round"] for row in page.latest] == [2]
    means = [np.mean(list(stored["main", s, 1]["score/j"].values())) for s in (0, 1)]
    assert page.latest[0]["metrics"]["metrics"]["score/j"]["mean"] == pytest.approx(np.mean(means))


def test_one_primary_is_claimed_and_all_else_is_exploratory() -> None:
    gains = {"score/j": 0.1, "check/a": 0.1} | {f"check/x{i}": 0.0 for i in range(8)}
    rounds, stored = made(1, gains)
    page = page_of(rounds, stored)
    assert page.primary == ["score/j", "win_rate/j"]
    assert page.claims.standing["main|score/j"] == "claimed"
    assert page.claims.standing["main|check/a"] == "exploratory"
    cells = {row.name: row.cells[1] for row in metric_rows(page.rounds)}
    assert (cells["score/j"].tone, cells["score/j"].exploratory) == ("good", False)
    assert (cells["check/a"].tone, cells["check/a"].exploratory) == ("", True)
    # Nine checks; the win rate is a function of the primary score.
    assert page.claims.explored == 9
    words = " ".join(claim_words(page))
    assert "score/j, win_rate/j" in words and "about 0.5 would have p < 0.05" in words
    named = page_of(rounds, stored, named=["check/a", "check/never"])
    assert named.claims.standing["main|check/a"] == "claimed"
    assert "Primary metric check/never was not measured." in claim_words(named)
    # Eight checks and the score; its win rate is a function of it here too.
    assert named.claims.explored == 9


def test_an_interval_that_leaves_zero_out_is_no_claim_by_itself() -> None:
    """Ten primaries with p just below 0.05: Holm claims none, and no cell is coloured."""
    rounds, stored = made(1, {f"check/x{i}": 0.0 for i in range(10)})
    change = rounds[-1]["metrics"]["deltas"]["initial"]
    for name in change:
        change[name] |= {"mean": 0.05, "low": 0.001, "high": 0.099, "p": 0.045}  # type: ignore[typeddict-item]
    page = page_of(rounds, stored, named=list(change))
    assert set(page.claims.standing.values()) == {"none"}
    assert {cell.tone for row in metric_rows(page.rounds) for cell in row.cells} == {""}
    assert page.claims.adjusted["main|check/x0"] == pytest.approx(0.45)


def test_arms_are_one_family() -> None:
    rounds, stored = made(1, {"score/j": 0.1}, ("a", "b"))
    deltas = metrics.compute_differences({**stored["b", 0, 1]}, {**stored["a", 0, 1]})
    comparison = {"seed": 0, "round": 1, "arms": ["a", "b"], "labels": {"a/b": {}}}
    page = page_of(rounds, stored, comparisons=[comparison | {"deltas": {"a/b": deltas}}])
    # The score and the win rate of two arms, and of one less the other.
    assert len(page.claims.adjusted) == 6
    assert set(page.comparisons[0]["standing"]["a/b"]) == {"score/j", "win_rate/j"}


def test_primary_metrics_are_those_named_or_of_the_trained_judge() -> None:
    names = {"score/a", "win_rate/a", "score/b", "win_rate/b", "check/x", "score/a/kind"}
    assert primary_figures(["check/x"], ["a"], names) == ["check/x"]
    assert primary_figures(None, ["a"], names) == ["score/a", "win_rate/a"]
    assert primary_figures(None, ["gone"], names) == sorted(names - {"check/x", "score/a/kind"})


def test_the_page_and_the_terminal_say_what_is_claimed(tmp_path: Path) -> None:
    rounds, stored = made(1, {"score/j": 0.1, "check/a": 0.1, "check/b": 0.0})
    view = RunView(
        "run",
        "",
        "done",
        "name: run\n",
        {},
        rounds=rounds,
        values=lambda a, s, n: stored[a, s, n],
        trained=["j"],
    )
    text = build_report(view, tmp_path).read_text(encoding="utf-8")
    assert "claimed: it rose" in text
    assert "it stands out among the other figures (exploratory)" in text
    assert "All else is exploratory" in text
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(summary_table(rounds, page_of(rounds, stored)))
    shown = console.export_text()
    assert "* stands out among the other figures (exploratory)" in shown
    assert "Holm over 2 tests" in shown
