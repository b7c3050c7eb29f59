"""Each alarm on hand-made numbers: one case that fires, its nearest neighbours that do not."""

from __future__ import annotations

import dataclasses
import json

import pytest

from rlaif.metrics.diagnostics import AlarmLimits, RoundMetrics, both_means, find_alarms, find_delta
from rlaif.metrics.intervals import IntervalJson


def iv(mean: float, half: float = 0.0, n: int = 64) -> IntervalJson:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def rm(
    metrics: dict[str, IntervalJson] | None = None,
    initial: dict[str, IntervalJson] | None = None,
    previous: dict[str, IntervalJson] | None = None,
) -> RoundMetrics:
    deltas = {"initial": initial or {}, "previous": previous or {}}
    return {"metrics": metrics or {}, "deltas": deltas}


def fired(*history: RoundMetrics, limits: AlarmLimits | None = None) -> list[str]:
    return [alarm.name for alarm in find_alarms(history, limits)]


def test_nothing_measured_is_silent() -> None:
    assert find_alarms([]) == []
    assert find_alarms([rm()]) == []
    assert find_alarms([rm(), {"metrics": {}, "deltas": {}}]) == []


@pytest.mark.parametrize(
    ("name", "metric", "value", "calm"),
    [
        ("kl_budget", "kl/initial", 30.1, 30.0),
        ("empty_answers", "empty_rate", 0.06, 0.05),
        ("zero_variance", "samples/zero_variance", 0.91, 0.9),
        ("unparsed", "unparsed_rate/self", 0.31, 0.3),
        ("position_bias", "position_bias/self", 0.51, 0.49),
        ("label_mass", "label_mass/self", 0.49, 0.5),
    ],
)
def test_levels(name: str, metric: str, value: float, calm: float) -> None:
    assert fired(rm({metric: iv(value)})) == [name]
    assert fired(rm({metric: iv(calm)})) == []
    assert find_alarms([rm({metric: iv(value)})])[0].value == value


@pytest.mark.parametrize(("now", "fires"), [(121.0, True), (120.0, False), (29.0, True)])
@pytest.mark.parametrize("metric", ["length/words", "length/tokens"])
def test_length_ratio(metric: str, now: float, fires: bool) -> None:
    latest = rm({metric: iv(now)}, {metric: iv(now - 60.0, half=1000.0)})
    assert ("length_ratio" in fired(latest)) is fires


def test_length_alarms_once_and_falls_back_on_the_first_round() -> None:
    both = {"length/words": iv(130.0), "length/tokens": iv(170.0)}
    first = rm({"length/words": iv(60.0), "length/tokens": iv(80.0)})
    alarms = find_alarms([first, rm(both)])
    assert [(a.name, a.metric, a.limit) for a in alarms] == [("length_ratio", "length/words", 2.0)]
    assert alarms[0].value == pytest.approx(130 / 60)
    assert fired(rm(both)) == []


@pytest.mark.parametrize(
    ("change", "half", "fires"), [(-0.16, 0.01, True), (-0.16, 0.2, False), (-0.1, 0.01, False)]
)
def test_diversity_loss(change: float, half: float, fires: bool) -> None:
    # From 0.8, a drop of 0.16 is a relative 20% and one of 0.1 is 12.5%.
    latest = rm({"distinct_2": iv(0.8 + change)}, {"distinct_2": iv(change, half)})
    assert (fired(latest) == ["diversity_loss"]) is fires


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("repetition_rise", "repetition_4"),
        ("refusal_rise", "refusal_rate"),
        ("not_applicable", "not_applicable_rate/checks"),
    ],
)
def test_rises_need_size_and_certainty(name: str, metric: str) -> None:
    assert fired(rm(initial={metric: iv(0.11, 0.05)})) == [name]
    assert fired(rm(initial={metric: iv(0.11, 0.12)})) == []
    assert fired(rm(initial={metric: iv(0.09, 0.01)})) == []
    assert fired(rm(initial={metric: iv(0.5, 0.01, n=3)})) == []


@pytest.mark.parametrize("metric", ["check/accuracy", "loglik/initial"])
def test_reward_hacking(metric: str) -> None:
    metrics = {"score/self": iv(0.7), metric: iv(0.4)}
    up, flat = iv(0.1, 0.05), iv(0.1, 0.2)
    down, unsure = iv(-0.1, 0.05), iv(-0.1, 0.2)
    assert fired(rm(metrics, {"score/self": up, metric: down})) == ["reward_hacking"]
    assert fired(rm(metrics, {"score/self": up, metric: unsure})) == []
    assert fired(rm(metrics, {"score/self": flat, metric: down})) == []
    assert fired(rm(metrics, {metric: down})) == []


def test_reward_hacking_that_began_this_round_is_seen() -> None:
    metrics = {"score/self": iv(0.7), "check/accuracy": iv(0.4)}
    since_start = {"score/self": iv(0.2, 0.05), "check/accuracy": iv(0.05, 0.01)}
    last_round = {"score/self": iv(0.1, 0.05), "check/accuracy": iv(-0.1, 0.05)}
    alarms = find_alarms([rm(), rm(metrics, since_start, last_round)])
    assert [alarm.name for alarm in alarms] == ["reward_hacking"]
    assert "since the previous model" in alarms[0].message


def test_a_principle_is_not_a_judge() -> None:
    metrics = {"score/self/concise": iv(0.99), "check/accuracy": iv(0.4)}
    changes = {"score/self/concise": iv(0.1, 0.01), "check/accuracy": iv(-0.1, 0.01)}
    assert fired(rm({**metrics, "samples/spread/self": iv(0.0)}, changes)) == []


@pytest.mark.parametrize(
    ("score", "spread", "fires"),
    [(0.97, 0.02, True), (0.96, 0.02, False), (0.99, 0.03, False), (0.99, None, False)],
)
def test_saturation(score: float, spread: float | None, fires: bool) -> None:
    metrics = {"score/self": iv(score)}
    if spread is not None:
        metrics["samples/spread/self"] = iv(spread)
    assert (fired(rm(metrics)) == ["saturation"]) is fires


def test_gap_collapse() -> None:
    def margins(*values: float) -> list[RoundMetrics]:
        return [rm(), *(rm({"pairs/margin": iv(value)}) for value in values)]

    assert fired(*margins(0.3, 0.2, 0.09)) == ["gap_collapse"]
    assert fired(*margins(0.3, 0.2, 0.0)) == ["gap_collapse"]
    assert fired(*margins(0.3, 0.2, 0.11)) == []
    assert fired(*margins(0.09)) == []
    assert fired(*margins(0.0, 0.0)) == []
    assert fired(*margins(0.3, 0.01), rm()) == []


@pytest.mark.parametrize("metric", ["length/words", "list_rate", "stock_phrase_rate"])
def test_drift_of_the_text_is_a_notice(metric: str) -> None:
    alarms = find_alarms([rm(initial={metric: iv(-0.21, 0.1)})])
    assert [(a.name, a.severity, a.metric) for a in alarms] == [("drift", "notice", metric)]
    assert alarms[0].limit == pytest.approx(0.2)
    assert fired(rm(initial={metric: iv(-0.19, 0.1)})) == []
    assert fired(rm(initial={metric: iv(1.0, 0.0, n=1)})) == []


def test_drift_of_the_judge_is_a_notice() -> None:
    assert fired(rm({"drift/self": iv(0.05, 0.02)})) == ["drift"]
    assert fired(rm({"drift/self": iv(0.03, 0.02)})) == []
    assert fired(rm({"drift/self": iv(0.0, 0.0)})) == []


def test_only_the_latest_round_is_judged() -> None:
    assert fired(rm({"kl/initial": iv(99.0)}), rm({"kl/initial": iv(1.0)})) == []


def test_every_judge_is_looked_at_and_alarms_come_before_notices() -> None:
    metrics = {
        "label_mass/a": iv(0.1),
        "unparsed_rate/a": iv(0.5),
        "unparsed_rate/b": iv(0.6),
    }
    assert [(a.severity, a.metric) for a in find_alarms([rm(metrics)])] == [
        ("alarm", "unparsed_rate/a"),
        ("alarm", "unparsed_rate/b"),
        ("notice", "label_mass/a"),
    ]


def test_limits_are_obeyed() -> None:
    latest = rm({"kl/initial": iv(5.0)})
    assert fired(latest, limits=AlarmLimits(kl_budget=4.0)) == ["kl_budget"]
    assert all(isinstance(v, float) for v in dataclasses.asdict(AlarmLimits()).values())


def test_an_alarm_is_json() -> None:
    alarm = find_alarms([rm({"kl/initial": iv(40.0)})])[0]
    assert json.loads(json.dumps(alarm.to_json())) == {
        "name": "kl_budget",
        "severity": "alarm",
        "message": "The policy is 40.00 nats per answer away from the initial model, "
        "beyond the budget of 30.00.",
        "metric": "kl/initial",
        "value": 40.0,
        "limit": 30.0,
    }


def test_both_sides_of_a_comparison_are_over_the_same_prompts() -> None:
    """M0 has 9 on all its prompts and 3 on those of both; the latest has 5 on all, and 4 there."""
    change = {**iv(1.0), "old": 3.0}
    history = [rm({"m": iv(9.0)}), rm({"m": iv(5.0)}, {"m": change})]
    assert both_means(history, "m") == (3.0, 4.0)
    assert find_delta(history, "m", "previous") is None
    assert both_means([rm({"m": iv(9.0)}), rm({"m": iv(5.0)}, {"m": iv(1.0)})], "m") == (4.0, 5.0)
    assert both_means([rm({"m": iv(9.0)}), rm({"m": iv(5.0)})], "m") == (9.0, 5.0)
    assert both_means([rm({"m": iv(9.0)})], "m") is None
