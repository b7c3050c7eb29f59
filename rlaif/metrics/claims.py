"""What a page of many figures may claim.

An experiment names its primary metrics: a change of one is claimed where Holm's procedure (1979)
over all of them rejects at 5%. All other figures are exploratory: those that stand out by Benjamini
and Hochberg (1995) are marked, beside the number that chance alone would bring below p = 0.05.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rlaif.metrics.intervals import MIN_PROMPTS, IntervalJson, prompts_of

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

    def may_say(self, key: str) -> bool:
        """Whether the figure's direction is shown as more than its interval."""
        return self.standing.get(key, "none") != "none"


def find_claims(primary: Mapping[str, IntervalJson], others: Mapping[str, IntervalJson]) -> Claims:
    """What may be said of the primary figures and of the others, each by a key of its own. Figures
    without a p, or of fewer than six prompts, are in neither family."""
    first = {k: p for k, i in primary.items() if (p := _p(i)) is not None}
    rest = {k: p for k, i in others.items() if (p := _p(i)) is not None}
    adjusted = holm(first)
    standing: dict[str, Standing] = dict.fromkeys([*primary, *others], "none")
    standing |= {k: "claimed" for k, p in adjusted.items() if p < ALPHA}
    standing |= {k: "exploratory" for k, p in benjamini_hochberg(rest).items() if p < ALPHA}
    return Claims(standing, adjusted, len(rest), ALPHA * len(rest))


def _p(interval: IntervalJson) -> float | None:
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
