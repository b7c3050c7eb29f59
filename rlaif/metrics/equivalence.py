"""Whether one policy is better than another, worse, or the same: an interval against a margin.

A margin is the difference that is too small to matter. "Same" is two one-sided t-tests at 5%
(Schuirmann 1987), which is the 90% interval within the margin; "better" and "worse" are by the 95%
interval. Where neither holds nothing is said but how large a difference would have been seen. Pure
functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scipy.stats import norm, t

from rlaif.metrics.intervals import (
    MIN_PROMPTS,
    IntervalJson,
    prompts_of,
    show_interval,
    show_number,
)

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
    quantile = float(norm.ppf(0.95)) if df is None else float(t.ppf(0.95, df))
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
        _whole(prompts * (SAME_POWERED * se / margin) ** 2),
        _whole(prompts * (POWERED * se / margin) ** 2),
    )


def _whole(prompts: float) -> int:
    """So many prompts or one more, but for what rounding of floats adds."""
    return math.ceil(round(prompts, 6))


_WORDS: Mapping[Verdict, str] = {
    "better": "better than",
    "worse": "worse than",
    "same": "the same as",
    "better within": "better, by less than the margin, than",
    "worse within": "worse, by less than the margin, than",
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
        return f"{second} is {_WORDS[found.verdict]} {first} in {figure} ({shown}; {size})."
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
