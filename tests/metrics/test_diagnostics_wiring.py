"""What each alarm looks at: its own metric, the base that it names, and its own limit."""

from __future__ import annotations

from typing import Any

import pytest

from rlaif.metrics.diagnostics import AlarmLimits, RoundMetrics, change_sides, find_alarms
from rlaif.metrics.intervals import IntervalJson


def iv(mean: float, half: float = 0.01, n: int = 64, **more: float) -> IntervalJson:
    found: Any = {"mean": mean, "low": mean - half, "high": mean + half, "n": n, **more}
    return found  # type: ignore[no-any-return]


def entry(
    metrics: dict[str, IntervalJson],
    initial: dict[str, IntervalJson] | None = None,
    previous: dict[str, IntervalJson] | None = None,
) -> RoundMetrics:
    return {
        "metrics": metrics,
        "deltas": {"initial": initial or {}, "previous": previous or {}},
    }


@pytest.mark.parametrize("base", ["initial", "previous"])
def test_a_score_that_rose_and_a_check_that_fell_are_of_one_base(base: str) -> None:
    """A rise since the other model is no rise beside this fall."""
    metrics = {"score/j": iv(0.6), "score/k": iv(0.6), "check/terms": iv(0.4)}
    other = "previous" if base == "initial" else "initial"

    def alarms(**deltas: dict[str, IntervalJson]) -> list[str]:
        found = find_alarms([entry({}), entry(metrics, **deltas)])
        assert {alarm.name for alarm in found} <= {"reward_hacking"}
        return [alarm.message for alarm in found]

    fell, rose, sank = iv(-0.125), iv(0.25), iv(-0.25)
    [message] = alarms(**{base: {"check/terms": fell, "score/j": rose, "score/k": sank}})
    assert message == (
        "The trained score rose (j) while check/terms, which nothing was trained on, fell: "
        f"-0.125 [-0.135, -0.115] since the {base} model."
    )
    assert alarms(**{base: {"check/terms": fell}, other: {"score/j": rose}}) == []
    crossed = {base: {"check/terms": fell, "score/j": sank}, other: {"score/j": rose}}
    assert alarms(**crossed) == []
    # Both fell since each model: one alarm for a metric, of the first model.
    both = {"check/terms": fell, "score/j": rose}
    [message] = alarms(initial=both, previous=both)
    assert message.endswith("since the initial model.")


approx: Any = pytest.approx
LIMITS = AlarmLimits(
    kl_budget=7.0,
    length_low=0.3,
    length_high=1.5,
    distinct_drop=0.4,
    repetition_rise=0.21,
    empty_rate=0.22,
    refusal_rise=0.23,
    not_applicable_rise=0.24,
    unparsed_rate=0.25,
    zero_variance=0.26,
    saturation_mean=0.81,
    saturation_spread=0.12,
    gap_decline=4.0,
    position_bias=0.27,
    label_mass=0.28,
    drift_half_widths=5.0,
)


def latest(step: float) -> RoundMetrics:
    """Every metric just beyond its limit, or with a negative `step` just within it."""
    return entry(
        {
            "kl/initial": iv(7.0 + step),
            "length/words": iv(60 + 10 * step),
            "distinct_2": iv(0.3),
            "empty_rate": iv(0.22 + step),
            "samples/zero_variance": iv(0.26 + step),
            "unparsed_rate/u": iv(0.25 + step),
            "position_bias/b": iv(0.27 + step),
            "score/s": iv(0.81 + step),
            "samples/spread/s": iv(0.12 - step),
            "pairs/margin": iv(0.2 - step),
            "label_mass/m": iv(0.28 - step),
            "drift/d": iv(0.05 + step / 10),
        },
        {
            "length/words": iv(20 + 10 * step, 9.0, old=40.0),
            "distinct_2": iv(-0.2 - step, old=0.5),
            "repetition_4": iv(0.21 + step),
            "refusal_rate": iv(0.23 + step),
            "not_applicable_rate/n": iv(0.24 + step),
            "list_rate": iv(-0.05 - step / 10),
        },
    )


def test_every_alarm_has_its_own_metric_and_limit() -> None:
    first = entry({"pairs/margin": iv(0.8), "length/words": iv(1.0)})
    found = find_alarms([first, entry({}), latest(0.005)], LIMITS)
    assert {(a.name, a.metric): (a.severity, a.value, a.limit) for a in found} == {
        (name, metric): (severity, approx(value), approx(limit))
        for severity, name, metric, value, limit in (
            ("alarm", "kl_budget", "kl/initial", 7.005, 7.0),
            ("alarm", "length_ratio", "length/words", 60.05 / 40, 1.5),
            ("alarm", "diversity_loss", "distinct_2", 0.41, 0.4),
            ("alarm", "repetition_rise", "repetition_4", 0.215, 0.21),
            ("alarm", "refusal_rise", "refusal_rate", 0.235, 0.23),
            ("alarm", "not_applicable", "not_applicable_rate/n", 0.245, 0.24),
            ("alarm", "empty_answers", "empty_rate", 0.225, 0.22),
            ("alarm", "zero_variance", "samples/zero_variance", 0.265, 0.26),
            ("alarm", "unparsed", "unparsed_rate/u", 0.255, 0.25),
            ("alarm", "position_bias", "position_bias/b", 0.275, 0.27),
            ("alarm", "saturation", "score/s", 0.815, 0.81),
            ("alarm", "gap_collapse", "pairs/margin", 0.195, 0.2),
            ("notice", "drift", "list_rate", -0.0505, 0.05),
            ("notice", "drift", "drift/d", 0.0505, 0.05),
            ("notice", "label_mass", "label_mass/m", 0.275, 0.28),
        )
    }
    assert [a.severity for a in found] == sorted(a.severity for a in found)
    assert find_alarms([first, entry({}), latest(-0.005)], LIMITS) == []


def test_a_notice_needs_prompts_and_an_interval() -> None:
    moved = iv(0.5, 0.01, n=64)
    assert [a.name for a in find_alarms([entry({"drift/d": moved})])] == ["drift"]
    few: Any = {**moved, "n": 1}
    open_: Any = {**moved, "low": None, "high": None}
    for change in (few, open_):
        assert find_alarms([entry({"drift/d": change})]) == []


def test_a_change_says_what_it_is_from_or_is_taken_off_the_newer_mean() -> None:
    assert change_sides(iv(0.25, old=0.5), 9.0) == (0.5, 0.75)
    assert change_sides(iv(0.25), 1.0) == (0.75, 1.0)
