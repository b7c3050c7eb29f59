"""Over-optimisation: what is optimised (the proxy) against what is wanted (gold), from one point to
the next of the optimisation. Pure functions.

Gao, Schulman and Hilton (2022, arXiv 2210.10760) draw both over the square root of the KL from the
initial policy: the proxy goes on rising where gold has begun to fall.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, TypedDict

from rlaif.metrics.intervals import MIN_PROMPTS, IntervalJson, direction, paired_interval

ByPrompt = Mapping[str, float]
Verdict = Literal["over-optimised", "proxy undecided", "not decided", "highest last"]
ERROR = 0.05
"""How often the set of points among which gold may peak misses the point where it does."""


@dataclass(frozen=True, slots=True)
class Point:
    """A policy on the way: its KL from the initial one in nats, None where it was not measured, and
    by prompt id what either judge makes of its answers."""

    name: str
    kl: float | None
    proxy: ByPrompt
    gold: ByPrompt


class Peak(TypedDict):
    """Where gold peaks: `best` is the place of the point at which its mean is highest, `among` are
    those at which it may be (95%), in order. `gold` and `proxy` are the changes from the best point
    to the last one. `verdict`: "over-optimised" where gold has fallen and the proxy has risen
    since, "proxy undecided" where gold alone is decided, "highest last" where the last point is the
    best one, else "not decided"."""

    best: int
    among: list[int]
    gold: IntervalJson | None
    proxy: IntervalJson | None
    verdict: Verdict


def root_kl(kl: float) -> float:
    """The square root of a KL in nats, the axis of arXiv 2210.10760; an estimate below 0 counts as
    0."""
    return math.sqrt(max(0.0, kl))


def find_peak(points: Sequence[Point]) -> Peak | None:
    """Where gold peaks, from two points on and over the prompts that all of them have; None with
    fewer points, or fewer than `MIN_PROMPTS` such prompts."""
    if len(points) < 2:
        return None
    shared = set.intersection(*({*p.gold} & {*p.proxy} for p in points))
    if len(shared) < MIN_PROMPTS:
        return None
    gold, proxy = (
        [{name: side[name] for name in shared} for side in sides]
        for sides in ([p.gold for p in points], [p.proxy for p in points])
    )
    means = [fmean(values[name] for name in sorted(shared)) for values in gold]
    last, best = len(points) - 1, max(range(len(points)), key=means.__getitem__)
    among = find_candidates(gold)
    if best == last:
        return {
            "best": best,
            "among": among,
            "gold": None,
            "proxy": None,
            "verdict": "highest last",
        }
    fell, rose = (_change(side[last], side[best]) for side in (gold, proxy))
    verdict: Verdict = "not decided"
    if last not in among:
        verdict = "over-optimised" if direction(rose) > 0 else "proxy undecided"
    return {"best": best, "among": among, "gold": fell, "proxy": rose, "verdict": verdict}


def find_candidates(gold: Sequence[ByPrompt]) -> list[int]:
    """The points that may be the highest, at 95%: those of which no other is higher for certain.

    Multiple comparisons with the best (Hsu 1981, The Annals of Statistics 9(5)): a point is out if
    the one-sided p of its paired difference to some other point is below `ERROR` divided by the
    number of others (Bonferroni). The highest one itself is thrown out with at most that
    probability, however many points there are and however they depend on one another.
    """
    level = ERROR / max(1, len(gold) - 1)

    def is_lower(place: int, other: int) -> bool:
        found = paired_interval(gold[other], gold[place])
        if found is None or found.p is None:
            return False
        return found.mean > 0 and found.p / 2 < level

    places = range(len(gold))
    return [k for k in places if not any(is_lower(k, j) for j in places if j != k)]


def _change(new: ByPrompt, old: ByPrompt) -> IntervalJson | None:
    found = paired_interval(new, old)
    return None if found is None else found.to_json()
