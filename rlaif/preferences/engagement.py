"""From what people did with shown answers to preferences with inverse propensity weights. Pure
functions.

The position-based model (Craswell et al. 2008): P(signal) = theta_k r, where theta_k is the
probability that somebody looks at position k and r that they then like what stands there. Dividing
by theta_k what was liked undoes the position (Joachims, Swaminathan and Schnabel 2017, arXiv
1608.04468).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlaif.config.engagement import EngagementSpec
from rlaif.core.errors import ConfigError
from rlaif.core.records import Message
from rlaif.data.events import ShownAnswer

Floats = NDArray[np.float64]
Impressions = Mapping[str, Sequence[ShownAnswer]]
_STEPS, _SMALL_STEP = 10_000, 1e-10


@dataclass(frozen=True, slots=True)
class Engaged:
    """An answer that people liked, over another one; or alone, good or bad, where the other side is
    None. `weight` sums the inverse propensities of the signals that say so."""

    prompt: list[Message]
    chosen: ShownAnswer | None
    rejected: ShownAnswer | None
    weight: float


@dataclass(frozen=True)
class Engagement:
    """The preferences of an events file, in order of prompt and answers. `signals` counts what they
    are made of, and `effective` is Kish's size of these weights, (sum w)^2 / sum w^2; `clipped`
    counts those that the largest weight cut. `theta` is the examination by position where it is
    not each row's own."""

    preferences: list[Engaged]
    signals: int
    effective: float
    clipped: int
    theta: dict[int, float]


def weigh_engagement(impressions: Impressions, spec: EngagementSpec) -> Engagement:
    """The preferences that the impressions give. Each pair of answers to a prompt, in each
    direction, and each answer with a sign, is one preference. Weights have a mean of 1: a
    self-normalised estimate, since a loss averages over them.

    Raises ConfigError where a probability is needed that is neither given nor can be estimated, and
    where nothing says which answers are good.
    """
    every = [one for shown in impressions.values() for one in shown]
    good = [one for one in every if _is_good(one, spec)]
    if not good:
        raise ConfigError(
            f"signal: none of {len(every)} shown answers has the signal {spec.signal!r}"
        )
    theta = _examination(impressions, spec)
    make = _compare_within if spec.form == "pairs" else _mark_alone
    sums: dict[tuple[str, str, str], float] = defaultdict(float)
    sides: dict[tuple[str, str, str], tuple[ShownAnswer | None, ShownAnswer | None]] = {}
    weights: list[float] = []
    clipped = 0
    for shown in impressions.values():
        for signal, chosen, rejected in make(shown, spec):
            inverse = 1.0 / _probability(signal, theta, spec)
            weight = inverse if spec.max_weight is None else min(inverse, spec.max_weight)
            clipped += weight < inverse
            weights.append(weight)
            key = (signal.prompt.prompt_id, _name(chosen), _name(rejected))
            sums[key] += weight
            sides.setdefault(key, (chosen, rejected))
    if not weights:
        raise ConfigError(
            f"none of {len(good)} answers with the signal {spec.signal!r} stands in an impression "
            "with another one to compare it with"
        )
    mean = sum(sums.values()) / len(sums)
    made = []
    for key in sorted(sums):
        chosen, rejected = sides[key]
        side = chosen or rejected
        assert side is not None, "one side at least was shown"
        made.append(Engaged(side.prompt.messages, chosen, rejected, sums[key] / mean))
    squares = sum(weight * weight for weight in weights)
    return Engagement(made, len(weights), sum(weights) ** 2 / squares, clipped, theta)


def _name(side: ShownAnswer | None) -> str:
    return "" if side is None else side.answer.completion_id


def _is_good(shown: ShownAnswer, spec: EngagementSpec) -> bool:
    if spec.signal == "dwell":
        assert spec.long_dwell is not None, "checked with the keys"
        return shown.dwell is not None and shown.dwell >= spec.long_dwell
    return getattr(shown, spec.signal) is True


def _is_bad(shown: ShownAnswer, spec: EngagementSpec) -> bool:
    """Whether an answer is known to be bad. Without a signal it is unknown, unless it was surely
    looked at."""
    if spec.signal == "dwell":
        least = spec.short_dwell
        return least is not None and shown.dwell is not None and shown.dwell < least
    if spec.signal == "thumbs":
        return shown.thumbs is False
    return shown.examined and getattr(shown, spec.signal) is False


Signals = Iterator[tuple[ShownAnswer, ShownAnswer | None, ShownAnswer | None]]
"""The answer that was looked at, the chosen and the rejected one."""


def _compare_within(shown: Sequence[ShownAnswer], spec: EngagementSpec) -> Signals:
    """Each good answer of an impression over others of it. With `shown` two good ones make a pair
    in both directions, without which the weights would not cancel the position (their expected
    weights are then the two answers' r)."""
    for one in shown:
        if not _is_good(one, spec):
            continue
        for other in shown:
            skipped = other.position < one.position and not _is_good(other, spec)
            compared = spec.against == "shown" or skipped
            if compared and other.answer.completion_id != one.answer.completion_id:
                yield one, one, other


def _mark_alone(shown: Sequence[ShownAnswer], spec: EngagementSpec) -> Signals:
    for one in shown:
        if _is_good(one, spec):
            yield one, one, None
        elif _is_bad(one, spec):
            yield one, None, one


def _probability(shown: ShownAnswer, theta: Mapping[int, float], spec: EngagementSpec) -> float:
    """The probability that an answer was looked at. Raises ConfigError where nothing says it."""
    if spec.examination == "logged":
        if shown.propensity is None:
            raise ConfigError(
                f"{shown.place}: propensity is missing, and `examination: logged` needs it. Give "
                "the probabilities by position (`examination: [1, 0.6, 0.4]`), or have them "
                "estimated with `random` or `position_model`"
            )
        return shown.propensity
    if isinstance(spec.examination, list):
        return spec.examination[min(shown.position, len(spec.examination)) - 1]
    if shown.position not in theta:
        raise ConfigError(
            f"{shown.place}: nothing says how often position {shown.position} is looked at: no "
            f"row that `examination: {spec.examination}` goes by stands there"
        )
    return theta[shown.position]


def _examination(impressions: Impressions, spec: EngagementSpec) -> dict[int, float]:
    """The probabilities by position, those of position 1 being 1, where they are not each row's."""
    if isinstance(spec.examination, list):
        return dict(enumerate(spec.examination, start=1))
    if spec.examination == "logged":
        return {}
    groups: dict[object, list[ShownAnswer]] = defaultdict(list)
    for name, shown in impressions.items():
        for one in shown:
            if spec.examination == "position_model":
                groups[one.answer.completion_id].append(one)
            elif one.random:
                groups[name].append(one)
    several = [g for g in groups.values() if len({one.position for one in g}) > 1]
    if not several:
        lacking = {
            "random": "impression has two rows with `random: true`",
            "position_model": "answer was shown at two positions",
        }[spec.examination]
        raise ConfigError(f"examination: {spec.examination}: no {lacking}")
    return estimate_examination(several, lambda one: _is_good(one, spec))


def estimate_examination(
    groups: Sequence[Sequence[ShownAnswer]], is_good: Callable[[ShownAnswer], bool]
) -> dict[int, float]:
    """theta_k by position, relative to position 1, from groups of rows in each of which what stands
    at a position does not depend on the position: one answer at several of them (intervention
    harvesting, Agarwal et al. 2019, arXiv 1812.05161), or the places of one impression that were
    filled by lot, for which it is the ratio of the click rates.

    The maximum of the Poisson likelihood of signals ~ theta_k r_g by iterative proportional
    fitting. Raises ConfigError where the rows set no limit to a ratio.
    """
    places = sorted({one.position for group in groups for one in group})
    column = {position: k for k, position in enumerate(places)}
    counts, liked = np.zeros((2, len(groups), len(places)))  # Both [groups, positions].
    for g, group in enumerate(groups):
        for one in group:
            counts[g, column[one.position]] += 1.0
            liked[g, column[one.position]] += is_good(one)
    useful = liked.sum(axis=1) > 0
    counts, liked = counts[useful], liked[useful]
    _refuse_unlinked(counts, liked, places)
    theta = np.ones(len(places))
    for _ in range(_STEPS):
        relevance = liked.sum(axis=1) / (counts @ theta)
        new = liked.sum(axis=0) / (counts * relevance[:, None]).sum(axis=0)
        new /= new[0]
        moved = float(np.abs(np.log(new / theta)).max())
        theta = new
        if moved < _SMALL_STEP:
            break
    return dict(zip(places, theta.tolist(), strict=True))


def _refuse_unlinked(counts: Floats, liked: Floats, places: Sequence[int]) -> None:
    """Raise ConfigError unless position 1 and every other have signals in groups that link them, in
    both directions (Ford 1957): otherwise some ratio has no finite or positive estimate."""
    links = (counts > 0).T.astype(np.float64) @ liked > 0  # [shown at, signals at]
    reach = np.linalg.matrix_power(links + np.eye(len(places)), max(1, len(places) - 1)) > 0
    linked = reach[0] & reach[:, 0]
    if places[0] != 1:
        raise ConfigError(
            "examination: position 1, to which the others are compared, has no row to estimate from"
        )
    if not linked.all():
        position = places[int(np.argmin(linked))]
        raise ConfigError(
            f"examination: position {position} cannot be compared with position 1: what was shown "
            "at both has too few signals. Give the probabilities instead (`examination: [1, ...]`)"
        )
