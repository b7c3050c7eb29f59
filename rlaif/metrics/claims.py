"""What a page of many figures may claim.

An experiment names its primary metrics: a change of one is claimed where Holm's procedure (1979)
over all of them rejects at 5%. All other figures are exploratory: those that stand out by Benjamini
and Hochberg (1995) are marked, beside the number that chance alone would bring below p = 0.05.

Whether one policy is better than another, worse, or the same is an interval against a margin, the
difference that is too small to matter. "Same" is two one-sided t-tests at 5% (Schuirmann 1987),
which is the 90% interval within the margin; "better" and "worse" are by the 95% interval. Where
neither holds, the page says only how large a difference would have been seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from scipy import special

from rlaif.metrics.intervals import (
    MIN_PROMPTS,
    IntervalJson,
    prompts_of,
    show_interval,
    show_number,
)

ALPHA = 0.05
Standing = Literal["claimed", "exploratory", "none"]


@dataclass(frozen=True, slots=True)
class Claims:
    """What may be said of each figure by key. `adjusted` are Holm's p of the primary ones,
    `explored` is the number of other figures, of which `by_chance` would have p < 0.05 if nothing
    had changed."""

    standing: Mapping[str, Standing] = field(default_factory=dict)
    adjusted: Mapping[str, float] = field(default_factory=dict)
    explored: int = 0
    by_chance: float = 0.0


def find_claims(primary: Mapping[str, IntervalJson], others: Mapping[str, IntervalJson]) -> Claims:
    """What may be said of the primary figures and of the others, each by a key of its own. Figures
    without a p, or of fewer than six prompts, are in neither family."""
    first = {k: p for k, i in primary.items() if (p := _p_value(i)) is not None}
    rest = {k: p for k, i in others.items() if (p := _p_value(i)) is not None}
    adjusted = holm(first)
    standing: dict[str, Standing] = dict.fromkeys([*primary, *others], "none")
    standing |= {k: "claimed" for k, p in adjusted.items() if p < ALPHA}
    standing |= {k: "exploratory" for k, p in benjamini_hochberg(rest).items() if p < ALPHA}
    return Claims(standing, adjusted, len(rest), ALPHA * len(rest))


def _p_value(interval: IntervalJson) -> float | None:
    return interval.get("p") if prompts_of(interval) >= MIN_PROMPTS else None


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p by key: the error rate of the whole family."""
    found, largest = {}, 0.0
    for place, key in enumerate(sorted(p, key=lambda k: (p[k], k))):
        largest = max(largest, min(1.0, (len(p) - place) * p[key]))
        found[key] = largest
    return found


def benjamini_hochberg(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p by key: the share of false ones among those that stand out."""
    found, smallest = {}, 1.0
    ordered = sorted(p, key=lambda k: (p[k], k))
    for place in range(len(ordered), 0, -1):
        key = ordered[place - 1]
        smallest = min(smallest, p[key] * len(p) / place)
        found[key] = smallest
    return found


def benjamini_yekutieli(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p by key, as `benjamini_hochberg`, valid however the tests depend on one another
    (Benjamini and Yekutieli 2001)."""
    harmonic = math.fsum(1 / place for place in range(1, len(p) + 1))
    return {key: min(1.0, harmonic * value) for key, value in benjamini_hochberg(p).items()}


Verdict = Literal["better", "worse", "same", "better within", "worse within", "unknown"]

POWERED = 2.8
"""A difference of so many standard errors is found in 80% of studies: z.975 + z.80."""
SAME_POWERED = 2.93
"""A margin of so many standard errors lets "same" be said in 80% of studies of no difference: z.95
+ z.90."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`verdict` on a difference, and what this many prompts can tell, in the figure's own units.

    `smallest` is the difference that is found four times of five; `prompts_for_same` and
    `prompts_for_margin` are how many prompts would say "same" of no difference, and find one of the
    margin's size, as often. All three are None where the differences have no spread to go by.
    """

    verdict: Verdict
    smallest: float | None = None
    prompts_for_same: int | None = None
    prompts_for_margin: int | None = None


def answer_of(difference: IntervalJson, margin: float) -> Answer:
    """What a paired difference with its 95% interval says, for a `margin` above 0."""
    se, df = difference.get("se"), difference.get("df")
    low, high = difference["low"], difference["high"]
    prompts = prompts_of(difference)
    if low is None or high is None or not se or prompts < MIN_PROMPTS:
        return Answer("unknown")
    quantile = float(special.ndtri(0.95) if df is None else special.stdtrit(df, 0.95))
    inside = max(abs(difference["mean"] - quantile * se), abs(difference["mean"] + quantile * se))
    within = inside < margin
    verdict: Verdict = "same" if within else "unknown"
    if low > 0:
        verdict = "better within" if within else "better"
    elif high < 0:
        verdict = "worse within" if within else "worse"
    return Answer(
        verdict,
        POWERED * se,
        _round_up(prompts * (SAME_POWERED * se / margin) ** 2),
        _round_up(prompts * (POWERED * se / margin) ** 2),
    )


def _round_up(prompts: float) -> int:
    """So many prompts or one more, but for what rounding of floats adds."""
    return math.ceil(round(prompts, 6))


_WORDS: Mapping[Verdict, str] = {
    "better": "better than",
    "worse": "worse than",
    "same": "the same as",
    "better within": "better than",
    "worse within": "worse than",
}


def answer_sentence(
    first: str, second: str, figure: str, difference: IntervalJson, margin: float
) -> str:
    """The answer in words: is what was trained on `second`'s labels as good as on `first`'s?
    `difference` is second less first, and `figure` says in what."""
    found = answer_of(difference, margin)
    shown = f"{show_interval(difference, signed=True)}, {prompts_of(difference)} prompts"
    size = f"margin {show_number(margin)}"
    if found.verdict != "unknown":
        within = ", by less than the margin" if found.verdict.endswith("within") else ""
        words = f"{second} is {_WORDS[found.verdict]} {first} in {figure}{within}"
        return f"{words} ({shown}; {size})."
    start = f"{second} against {first} in {figure}: cannot tell ({shown}; {size})."
    if prompts_of(difference) < MIN_PROMPTS:
        return f"{start} Fewer than {MIN_PROMPTS} prompts tell nothing."
    if found.smallest is None:
        note = difference.get("note")
        return f"{start} {note[0].upper()}{note[1:]}." if note else start
    return (
        f"{start} A difference of {show_number(found.smallest)} would be found in 80% of such "
        f"experiments. It takes about {found.prompts_for_margin} prompts to find a difference of "
        f"the margin, and {found.prompts_for_same} to find that there is none."
    )
