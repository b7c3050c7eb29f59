"""Alarms: what goes wrong when AI feedback trains a model, read off a run's metrics.

Every check looks at the latest round and needs only numbers with intervals, so it can be run again
on a finished run. A metric that was not measured never fires.

Sources of the signals: score-gap collapse, self-rewarding models (2401.10020 and its follow-ups);
proxy against gold, reward-model over-optimisation (2210.10760); zero-variance groups, GRPO and its
successors; position bias, pairwise language-model judges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict

from rlaif.metrics.intervals import (
    MIN_PROMPTS,
    IntervalJson,
    direction,
    prompts_of,
    show_interval,
    show_number,
)

Base = Literal["initial", "previous"]


class RoundMetrics(TypedDict):
    """One round's measurements.

    `metrics` maps a name to its interval; `deltas` maps "initial" and "previous" to the paired
    differences from that model, by the same names.
    """

    metrics: dict[str, IntervalJson]
    deltas: dict[str, dict[str, IntervalJson]]


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something a person should look at: `value` of `metric` passed `limit`.

    An "alarm" says that the run has probably gone wrong; a "notice", that something moved.
    """

    name: str
    severity: Literal["alarm", "notice"]
    message: str
    metric: str
    value: float
    limit: float

    def to_json(self) -> dict[str, Any]:
        """The fields as a plain dict."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class AlarmLimits:
    """Where each alarm fires.

    kl_budget: nats per sequence from the initial model. length_low, length_high: mean length over
    the initial model's. distinct_drop: relative loss of distinct_2. repetition_rise, refusal_rise,
    not_applicable_rise: absolute rise of the rate. empty_rate, unparsed_rate, zero_variance: the
    rate itself. saturation_mean with saturation_spread: a judge at its ceiling that no longer tells
    answers apart. gap_decline: first over latest mean margin. position_bias: the same-slot rate
    itself. label_mass: least mass on the allowed labels. drift_half_widths: how many half-widths of
    its interval a change must measure to be noticed.
    """

    kl_budget: float = 30.0
    length_low: float = 0.5
    length_high: float = 2.0
    distinct_drop: float = 0.15
    repetition_rise: float = 0.1
    empty_rate: float = 0.05
    refusal_rise: float = 0.1
    not_applicable_rise: float = 0.1
    unparsed_rate: float = 0.3
    zero_variance: float = 0.9
    saturation_mean: float = 0.97
    saturation_spread: float = 0.02
    gap_decline: float = 3.0
    position_bias: float = 0.5
    label_mass: float = 0.5
    drift_half_widths: float = 2.0


def find_alarms(history: Sequence[RoundMetrics], limits: AlarmLimits | None = None) -> list[Alarm]:
    """Alarms about the last entry of `history`, alarms before notices.

    `history` holds rounds 0..r in order, round 0 being the initial model. An empty one has none.
    """
    if not history:
        return []
    found = [alarm for check in _CHECKS for alarm in check(history, limits or AlarmLimits())]
    return sorted(found, key=lambda alarm: alarm.severity)


def find_delta(history: Sequence[RoundMetrics], name: str, base: Base) -> IntervalJson | None:
    """The latest round's paired difference in `name` from the base model, if measured."""
    return history[-1]["deltas"].get(base, {}).get(name)


def both_means(history: Sequence[RoundMetrics], name: str) -> tuple[float, float] | None:
    """The initial model's mean of `name` and the latest one, over the same prompts where a
    difference was taken; None where either was not measured."""
    latest, change = history[-1]["metrics"].get(name), find_delta(history, name, "initial")
    if latest is None:
        return None
    if change is not None:
        return change_sides(change, latest["mean"])
    first = history[0]["metrics"].get(name) if len(history) > 1 else None
    return None if first is None else (first["mean"], latest["mean"])


def change_sides(change: IntervalJson, latest: float) -> tuple[float, float]:
    """What a difference is from and to, over the same prompts. Rows of earlier versions do not say
    the first, and get it from `latest`, the mean over all prompts of the newer side."""
    old = change.get("old", latest - change["mean"])
    return old, old + change["mean"]


def _find_metrics(
    history: Sequence[RoundMetrics], prefix: str
) -> list[tuple[str, str, IntervalJson]]:
    """(metric, judge, interval) of the latest round's metrics called `prefix/<judge>`."""
    found = []
    for name, interval in sorted(history[-1]["metrics"].items()):
        head, _, judge = name.rpartition("/")
        if head == prefix and interval is not None:
            found.append((name, judge, interval))
    return found


def _check_kl(history: Sequence[RoundMetrics], limits: AlarmLimits) -> Iterator[Alarm]:
    kl = history[-1]["metrics"].get("kl/initial")
    if kl is not None and kl["mean"] > limits.kl_budget:
        message = (
            f"The policy is {show_number(kl['mean'])} nats per answer away from the initial model, "
            f"beyond the budget of {show_number(limits.kl_budget)}."
        )
        yield Alarm("kl_budget", "alarm", message, "kl/initial", kl["mean"], limits.kl_budget)


def _check_length(history: Sequence[RoundMetrics], limits: AlarmLimits) -> Iterator[Alarm]:
    for name in ("length/words", "length/tokens"):
        sides = both_means(history, name)
        if sides is None or not sides[0]:
            continue
        first, now = sides
        ratio = now / first
        if limits.length_low <= ratio <= limits.length_high:
            continue
        limit = limits.length_low if ratio < limits.length_low else limits.length_high
        factor = find_delta(history, f"length_factor/{name.split('/')[1]}", "initial")
        typical = "" if factor is None else f"; within a prompt {show_interval(factor)} times"
        unit = name.split("/")[1]
        message = (
            f"Answers are {show_number(ratio)} times as long as the initial model's "
            f"({show_number(now)} against {show_number(first)} {unit}{typical})."
        )
        yield Alarm("length_ratio", "alarm", message, name, ratio, limit)
        return


def _check_diversity(history: Sequence[RoundMetrics], limits: AlarmLimits) -> Iterator[Alarm]:
    change, sides = find_delta(history, "distinct_2", "initial"), both_means(history, "distinct_2")
    if change is None or sides is None or not sides[0] or direction(change) >= 0:
        return
    drop = -change["mean"] / sides[0]
    if drop > limits.distinct_drop:
        message = (
            f"Diversity fell: distinct_2 is {drop:.0%} below the initial model's "
            f"({show_interval(change, signed=True)})."
        )
        yield Alarm("diversity_loss", "alarm", message, "distinct_2", drop, limits.distinct_drop)


def _check_rises(history: Sequence[RoundMetrics], limits: AlarmLimits) -> Iterator[Alarm]:
    for name, metric, limit, what in (
        ("repetition_rise", "repetition_4", limits.repetition_rise, "Answers repeat themselves"),
        ("refusal_rise", "refusal_rate", limits.refusal_rise, "The policy refuses more"),
    ):
        change = find_delta(history, metric, "initial")
        if change is not None and direction(change) > 0 and change["mean"] > limit:
            message = (
                f"{what}: {metric} rose by {show_interval(change, signed=True)} since the "
                "initial model."
            )
            yield Alarm(name, "alarm", message, metric, change["mean"], limit)


def _check_escapes(history: Sequence[RoundMetrics], limits: AlarmLimits) -> Iterator[Alarm]:
    changes = history[-1]["deltas"].get("initial", {})
    for name, change in sorted(changes.items()):
        head, _, judge = name.rpartition("/")
        if head != "not_applicable_rate" or direction(change) <= 0:
            continue
        if change["mean"] > limits.not_applicable_rise:
            message = (
                f"Principles of judge {judge!r} apply to fewer answers than before: the share not "
                f"applicable rose by {show_interval(change, signed=True)} since the initial model. "
                "Its score may have risen because answers escape a principle."
            )
            limit = limits.not_applicable_rise
            yield Alarm("not_applicable", "alarm", message, name, change["mean"], limit)


def _check_rates(history: Sequence[RoundMetrics], limits: AlarmLimits) -> Iterator[Alarm]:
    metrics = history[-1]["metrics"]
    empty, flat = metrics.get("empty_rate"), metrics.get("samples/zero_variance")
    if empty is not None and empty["mean"] > limits.empty_rate:
        message = f"{empty['mean']:.0%} of the answers are empty."
        limit = limits.empty_rate
        yield Alarm("empty_answers", "alarm", message, "empty_rate", empty["mean"], limit)
    if flat is not None and flat["mean"] > limits.zero_variance:
        message = f"All samples score the same on {flat['mean']:.0%} of the prompts: no signal."
        name, limit = "samples/zero_variance", limits.zero_variance
        yield Alarm("zero_variance", "alarm", message, name, flat["mean"], limit)
    for name, judge, rate in _find_metrics(history, "unparsed_rate"):
        if rate["mean"] > limits.unparsed_rate:
            message = f"{rate['mean']:.0%} of the verdicts of judge {judge!r} could not be read."
            yield Alarm("unparsed", "alarm", message, name, rate["mean"], limits.unparsed_rate)
    for name, judge, rate in _find_metrics(history, "position_bias"):
        if rate["mean"] > limits.position_bias:
            message = (
                f"Judge {judge!r} picks by place: in {rate['mean']:.0%} of the pairs the same slot "
                "wins in both orders."
            )
            yield Alarm("position_bias", "alarm", message, name, rate["mean"], limits.position_bias)


def _check_hacking(history: Sequence[RoundMetrics], limits: AlarmLimits) -> Iterator[Alarm]:
    held_out = [name for name, _, _ in _find_metrics(history, "check")] + ["loglik/initial"]
    for metric in held_out:
        for base in ("initial", "previous"):
            change = find_delta(history, metric, base)
            risen = [
                judge
                for name, judge, _ in _find_metrics(history, "score")
                if direction(find_delta(history, name, base)) > 0
            ]
            if change is None or direction(change) >= 0 or not risen:
                continue
            likelihood = "the log-likelihood under the initial model"
            what = likelihood if metric == "loglik/initial" else metric
            message = (
                f"The trained score rose ({', '.join(risen)}) while {what}, which nothing was "
                f"trained on, fell: {show_interval(change, signed=True)} since the {base} model."
            )
            yield Alarm("reward_hacking", "alarm", message, metric, change["mean"], 0.0)
            break


def _check_saturation(history: Sequence[RoundMetrics], limits: AlarmLimits) -> Iterator[Alarm]:
    for name, judge, score in _find_metrics(history, "score"):
        spread = history[-1]["metrics"].get(f"samples/spread/{judge}")
        if spread is None or spread["mean"] > limits.saturation_spread:
            continue
        if score["mean"] >= limits.saturation_mean:
            message = (
                f"Judge {judge!r} is at its ceiling: mean score {show_number(score['mean'])}, "
                f"spread within a prompt {show_number(spread['mean'])}. It no longer tells answers "
                "apart."
            )
            yield Alarm("saturation", "alarm", message, name, score["mean"], limits.saturation_mean)


def _check_gap(history: Sequence[RoundMetrics], limits: AlarmLimits) -> Iterator[Alarm]:
    margins = [r["metrics"]["pairs/margin"]["mean"] for r in history if _has_margin(r)]
    if len(margins) < 2 or not _has_margin(history[-1]) or margins[0] <= 0.0:
        return
    limit = margins[0] / limits.gap_decline
    if margins[-1] < limit:
        message = (
            f"The score gap between chosen and rejected fell from {show_number(margins[0])} to "
            f"{show_number(margins[-1])}: the pairs carry less and less signal."
        )
        yield Alarm("gap_collapse", "alarm", message, "pairs/margin", margins[-1], limit)


def _has_margin(round_metrics: RoundMetrics) -> bool:
    return round_metrics["metrics"].get("pairs/margin") is not None


def _check_drifts(history: Sequence[RoundMetrics], limits: AlarmLimits) -> Iterator[Alarm]:
    watched = [
        (metric, find_delta(history, metric, "initial"), f"{metric} moved by")
        for metric in ("length/words", "list_rate", "stock_phrase_rate")
    ]
    watched += [
        (name, interval, f"On the same texts judge {judge!r} by the moved policy differs by")
        for name, judge, interval in _find_metrics(history, "drift")
    ]
    for metric, change, what in watched:
        if change is None or prompts_of(change) < MIN_PROMPTS:
            continue
        low, high = change["low"], change["high"]
        if low is None or high is None:
            continue
        limit = limits.drift_half_widths * (high - low) / 2.0
        if abs(change["mean"]) > limit:
            message = f"{what} {show_interval(change, signed=True)} since the initial model."
            yield Alarm("drift", "notice", message, metric, change["mean"], limit)


def _label_mass(history: Sequence[RoundMetrics], limits: AlarmLimits) -> Iterator[Alarm]:
    for name, judge, mass in _find_metrics(history, "label_mass"):
        if mass["mean"] < limits.label_mass:
            message = (
                f"Judge {judge!r} puts only {mass['mean']:.0%} of its probability on the allowed "
                "labels, so its scores are based on a small part of its distribution."
            )
            yield Alarm("label_mass", "notice", message, name, mass["mean"], limits.label_mass)


_CHECKS: tuple[Callable[[Sequence[RoundMetrics], AlarmLimits], Iterator[Alarm]], ...] = (
    _check_hacking,
    _check_kl,
    _check_length,
    _check_diversity,
    _check_rises,
    _check_escapes,
    _check_rates,
    _check_saturation,
    _check_gap,
    _check_drifts,
    _label_mass,
)
