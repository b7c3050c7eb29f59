"""The report's small pieces: colours, groups, durations, embedding."""

from __future__ import annotations

import pytest

from rlaif.metrics.figure_rules import RULES
from rlaif.metrics.intervals import IntervalJson
from rlaif.report import plots
from rlaif.report.browser import clip_text, embed_json
from rlaif.report.build import format_duration
from rlaif.report.rows import kind_of, metric_rows
from rlaif.report.view import RoundResult, RoundRow


@pytest.mark.parametrize(
    ("name", "change", "tone"),
    [
        ("check/a", 0.2, "good"),
        ("check/a", -0.2, "bad"),
        ("check/a", 0.01, ""),
        ("length/words", 0.2, "moved"),
        ("repetition_4", 0.2, "bad"),
        ("unheard_of", -0.2, "moved"),
    ],
)
def test_colour_needs_a_claim(name: str, change: float, tone: str) -> None:
    interval: IntervalJson = {"mean": change, "low": change - 0.1, "high": change + 0.1, "n": 40}
    metrics: RoundResult = {"metrics": {name: interval}, "deltas": {"initial": {name: interval}}}
    row = RoundRow(
        arm="main", seed=1, round=1, policy_in="", policy_out="", counts={}, metrics=metrics
    )
    assert metric_rows([row])[0].cells[0].tone == ""
    metrics["standing"] = {name: "claimed"}
    assert metric_rows([row])[0].cells[0].tone == tone
    metrics["standing"] = {name: "exploratory"}
    cell = metric_rows([row])[0].cells[0]
    assert (cell.tone, cell.exploratory) == ("", True)


def test_a_prefix_does_not_swallow_its_neighbours() -> None:
    assert kind_of("kl_per_token/initial") is RULES["kl_per_token/"]
    assert kind_of("score/self/concise") is RULES["score/"]
    assert kind_of("distinct_2_of_something").group == "Other"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (0.42, "0.4 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float | None, shown: str) -> None:
    assert format_duration(seconds) == shown


def test_embedding_and_clipping() -> None:
    assert embed_json({"a": "</script>&\u2028é"}) == (
        '{"a":"\\u003c/script\\u003e\\u0026\\u2028\\u00e9"}'
    )
    assert clip_text("short") == "short"
    assert clip_text("x" * 30, 10) == "x" * 10 + "\n\n[… 20 more characters in the run folder]"


def test_a_curve_of_zeros_shows_no_negative_shares() -> None:
    zero: IntervalJson = {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 9}
    svg = plots.draw_curve("zero", "a share", {"": [(0, zero), (1, zero)]}, {0: "M0", 1: "M1"})
    assert ">0.0<" in svg.replace(" ", "") and "\u2212" not in svg
