"""Over-optimisation in sentences, a table and figures: the proxy against gold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from rlaif.metrics.intervals import MIN_PROMPTS, show_interval, show_number
from rlaif.metrics.over_optimisation import Peak, root_kl
from rlaif.report import plots
from rlaif.report.view import ProxyPoint, ProxyRow


@dataclass(frozen=True, slots=True)
class ProxySection:
    """One proxy against one gold judge or check, as the page shows it."""

    title: str
    sentence: str
    rows: list[ProxyPoint]
    svg: Markup


def title_of(row: ProxyRow, by_arm: bool, by_seed: bool) -> str:
    """What a row is about, with its arms and seed where there are several."""
    where = [row["about"]] if row["about"] else []
    where += [f"arm {' '.join(row['arms'])}"] if by_arm else []
    where += [f"seed {row['seed']}"] if by_seed else []
    what = "Over the rounds" if row["kind"] == "rounds" else "Best of n"
    return ", ".join([f"{what}: {row['proxy']} against {row['gold']}", *where])


def describe_peak(row: ProxyRow) -> str:
    """Where gold peaks and whether the proxy still rises from there, or that it is not decided."""
    points, peak, gold = row["points"], row["peak"], f"gold ({row['gold']})"
    if peak is None:
        return f"Not decided: fewer than {MIN_PROMPTS} prompts have both values at every point."
    best, last = points[peak["best"]], points[-1]
    if peak["verdict"] == "highest last":
        first = peak["among"] == [len(points) - 1]
        doubt = "" if first else "; that it peaks earlier is not ruled out"
        return f"No fall: {gold} is highest at the last point, {_place_of(last)}{doubt}."
    assert peak["gold"] is not None
    assert peak["proxy"] is not None
    changes = show_interval(peak["gold"], signed=True)
    rise = f"the proxy ({row['proxy']}) changes by {show_interval(peak['proxy'], signed=True)}"
    if peak["verdict"] == "not decided":
        return (
            f"Not decided: {gold} is highest at {_place_of(best)}, and from there to the last "
            f"point, {_place_of(last)}, it changes by {changes}, while {rise}."
        )
    said = "Over-optimised" if peak["verdict"] == "over-optimised" else "Gold fell"
    still = "" if peak["verdict"] == "over-optimised" else "; the proxy has not clearly risen"
    return (
        f"{said}: {gold} peaks {_range_of(points, peak)}, highest at {_place_of(best)}, and from "
        f"there to the last point, {_place_of(last)}, it changes by {changes}, while {rise}{still}."
    )


def _place_of(point: ProxyPoint) -> str:
    """A point's name and, where it is known, its place on the axis."""
    kl = point["kl"]
    return point["name"] + ("" if kl is None else f" (√KL {show_number(root_kl(kl))})")


def _range_of(points: Sequence[ProxyPoint], peak: Peak) -> str:
    """Where gold may peak, as a range of √KL or of names."""
    among = [points[place] for place in peak["among"]]
    roots = [root_kl(p["kl"]) for p in among if p["kl"] is not None]
    if len(roots) < len(among):
        ends = list(dict.fromkeys([among[0]["name"], among[-1]["name"]]))
        return f"{'at' if len(ends) == 1 else 'between'} {' and '.join(ends)} (95%)"
    low, high = show_number(min(roots)), show_number(max(roots))
    return f"at √KL {low} (95%)" if low == high else f"between √KL {low} and {high} (95%)"


def proxy_sentences(rows: Sequence[ProxyRow]) -> list[str]:
    """A line for the terminal on each row; of the best of n the latest sample of each name."""
    latest = {_line_of(row): row for row in rows}
    arms = len({tuple(row["arms"]) for row in rows}) > 1
    seeds = len({row["seed"] for row in rows}) > 1
    return [f"{title_of(row, arms, seeds)}. {describe_peak(row)}" for row in latest.values()]


def _line_of(row: ProxyRow) -> tuple[object, ...]:
    name = row["about"].split(",")[0]
    return row["kind"], name, tuple(row["arms"]), row["seed"], row["proxy"], row["gold"]


def describe_training(training: Mapping[str, Any]) -> str:
    """Where an on-policy training stands: its last rollout's reward, the proxy, and how far it is
    from the reference, beside those of its first rollout."""
    first, latest = training["first"], training["latest"]
    said = [f"rollout {training['rollout']} of {training['rollouts']}"]
    for name, what in (("reward", "mean reward"), ("kl_teacher", "KL to the teacher")):
        if name in latest and name in first:
            said.append(f"{what} {show_number(latest[name])} (first {show_number(first[name])})")
    if "kl" in latest:
        kl = latest["kl"]
        said.append(f"KL to the reference {show_number(kl)} nats (√KL {show_number(root_kl(kl))})")
    where = f"{training['id']} (seed {training['seed']} round {training['round']})"
    return f"training: {where}: {', '.join(said)}"


def make_proxy_sections(rows: Sequence[ProxyRow]) -> list[ProxySection]:
    """What the page shows of each row."""
    arms = len({tuple(row["arms"]) for row in rows}) > 1
    seeds = len({row["seed"] for row in rows}) > 1
    sections = []
    for place, row in enumerate(rows):
        title = title_of(row, arms, seeds)
        svg = _draw_row(f"proxy{place}", title, row)
        sections.append(ProxySection(title, describe_peak(row), row["points"], svg))
    return sections


def _draw_row(slug: str, title: str, row: ProxyRow) -> Markup:
    points, peak = row["points"], row["peak"]
    roots = [root_kl(point["kl"]) for point in points if point["kl"] is not None]
    known = len(roots) == len(points)
    places = roots if known else [float(number) for number in range(len(points))]
    decided = peak is not None and peak["verdict"] in ("over-optimised", "proxy undecided")
    among = [places[k] for k in peak["among"]] if peak is not None and decided else []
    said = (
        f"{point['name']} {show_number(point['proxy']['mean'])} and "
        f"{show_number(point['gold']['mean'])}"
        for point in points
    )
    return plots.draw_proxy(
        slug,
        f"{title}; proxy and gold: {', '.join(said)}",
        [(x, point["proxy"]) for x, point in zip(places, points, strict=True)],
        [(x, point["gold"]) for x, point in zip(places, points, strict=True)],
        "√KL (nats) from the initial policy" if known else "round",
        (min(among), max(among)) if among else None,
    )
