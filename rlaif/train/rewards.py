"""From the judges' values of sampled answers to one reward each: a sum of weighted terms.

All of it is in fp64, before anything is cast: two rewards of 20 that differ by 1e-6 differ here.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rlaif.config.rewards import REFERENCE_ANSWERS, RewardTerm, names_of
from rlaif.core.errors import RlaifError, StoreError
from rlaif.core.integrity import read_sealed, write_sealed
from rlaif.train.losses.policy import FLAT
from rlaif.train.rollout import Answer, Group

REFERENCE_DRAWS = 16
"""How often that many are drawn at most, where answers have no value."""
REFERENCE_FILE = "reference_rewards.json"


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sum of squared deviations of numbers."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def joined(self, values: Sequence[float]) -> Moments:
        """With more numbers (Chan, Golub and LeVeque, 1979: the parallel form)."""
        if not values:
            return self
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        count = self.count + len(values)
        gap = mean - self.mean
        return Moments(
            count,
            self.mean + gap * len(values) / count,
            self.squares + squares + gap**2 * self.count * len(values) / count,
        )

    @property
    def deviation(self) -> float:
        """The unbiased standard deviation, 0 of fewer than two."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0

    @property
    def flat(self) -> bool:
        """Whether the numbers differ by no more than rounding."""
        return self.deviation <= FLAT * abs(self.mean)

    @property
    def spread(self) -> float:
        """What values are divided by: the deviation, and 1 where they are flat, since almost 0
        would make much of nothing."""
        return 1.0 if self.flat else self.deviation

    def standardised(self, value: float) -> float:
        """(value - mean) / spread."""
        return (value - self.mean) / self.spread


def term_values(groups: Iterable[Group], place: int) -> list[float]:
    """The values of one term that are there, of the answers that it is for."""
    return _values_of((answer for group in groups for answer in group.answers), place)


def _values_of(answers: Iterable[Answer], place: int) -> list[float]:
    known = (answer.values[place] for answer in answers if place not in answer.idle)
    return [value for value in known if value is not None]


def rewarded_answers(group: Group, terms: Sequence[RewardTerm]) -> list[Answer]:
    """The answers that have a reward: no term that is for them lacks its value."""
    needed = [place for place, term in enumerate(terms) if term.weight != 0]
    return [
        answer
        for answer in group.answers
        if all(i in answer.idle or answer.values[i] is not None for i in needed)
    ]


def updated(
    running: Mapping[str, Moments], groups: Sequence[Group], terms: Sequence[RewardTerm]
) -> dict[str, Moments]:
    """The moments of the terms of `normalise: running`, by name, with the answers that have a
    reward."""
    rewarded = [answer for group in groups for answer in rewarded_answers(group, terms)]
    return {
        name: running.get(name, Moments()).joined(_values_of(rewarded, place))
        for place, (name, term) in enumerate(zip(names_of(terms), terms, strict=True))
        if term.normalise == "running"
    }


def summed(
    groups: Sequence[Group], terms: Sequence[RewardTerm], moments: Mapping[str, Moments]
) -> list[list[float | None]]:
    """By group each answer's reward; None where a term that is for the answer has no value, and 0
    without any terms. `moments` are those of the terms of `normalise: reference` and `running`, by
    name."""
    if not terms:
        return [[0.0] * len(group.answers) for group in groups]
    return [
        [_total_reward(parts) for parts in zip(*_contributions(group, terms, moments), strict=True)]
        for group in groups
    ]


def _contributions(
    group: Group, terms: Sequence[RewardTerm], moments: Mapping[str, Moments]
) -> list[list[float | None]]:
    """What each term adds to each answer's reward."""
    found: list[list[float | None]] = []
    for place, (term, name) in enumerate(zip(terms, names_of(terms), strict=True)):
        # A term that is only logged never decides whether there is a reward.
        if term.weight == 0:
            found.append([0.0] * len(group.answers))
            continue
        scales: dict[float, Moments | _Range] = {}
        if term.compares_group:
            scales = _group_scales(rewarded_answers(group, terms), place, term.normalise)
        column: list[float | None] = []
        for answer in group.answers:
            value = answer.values[place]
            if place in answer.idle:
                column.append(0.0)
            elif value is None:
                column.append(None)
            else:
                scale = scales.get(answer.stratum(place), moments.get(name))
                column.append(_scale_value(term, scale, value))
        found.append(column)
    return found


@dataclass(frozen=True, slots=True)
class _Range:
    """The lowest and the highest of some numbers."""

    low: float
    high: float

    @property
    def flat(self) -> bool:
        """Whether the numbers differ by no more than rounding."""
        return self.high - self.low <= FLAT * max(abs(self.low), abs(self.high))

    def standardised(self, value: float) -> float:
        """On [-1, 1]."""
        return 2 * (value - self.low) / (self.high - self.low) - 1


def _group_scales(
    answers: Sequence[Answer], place: int, normalise: str
) -> dict[float, Moments | _Range]:
    """What a term's values are normalised by, by the answers' stratum."""
    strata: dict[float, list[Answer]] = defaultdict(list)
    for answer in answers:
        strata[answer.stratum(place)].append(answer)
    scales: dict[float, Moments | _Range] = {}
    for stratum, members in strata.items():
        values = _values_of(members, place)
        if values and normalise == "range":
            scales[stratum] = _Range(min(values), max(values))
        elif values:
            scales[stratum] = Moments().joined(values)
    return scales


def _scale_value(term: RewardTerm, scale: Moments | _Range | None, value: float) -> float:
    if term.normalise != "none":
        # Without a scale it is an answer that has no reward, and nothing to be compared with.
        equal = scale is None or (term.compares_group and scale.flat)
        value = 0.0 if equal or scale is None else scale.standardised(value)
    if term.clip is not None:
        value = min(term.clip, max(-term.clip, value))
    return term.weight * value


def _total_reward(parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return math.fsum(known) if len(known) == len(parts) else None


def fit_reference(
    collect: Callable[[int], Sequence[Group]],
    terms: Sequence[RewardTerm],
    work: Path,
    begun: bool,
) -> dict[str, Moments]:
    """The moments of the terms of `normalise: reference`, by name: of `REFERENCE_ANSWERS` answers
    of the start policy or more, drawn by `collect` (-1, -2, ...) and stored before the first step.

    `begun` says that training has gone on from there: then they must be stored. Raises RlaifError
    where too few answers have a value, StoreError where the file is lost or damaged.
    """
    names = names_of(terms)
    wanted = [place for place, term in enumerate(terms) if term.fits_reference]
    if not wanted:
        return {}
    path = work / REFERENCE_FILE
    advice = f"Delete the folder {work} to train again from the start."
    stored = read_sealed(path, advice)
    if stored is not None:
        return moments_from_json(stored["terms"])
    if begun:
        raise StoreError(f"{path}: missing; training goes on with what it says. {advice}")
    groups: list[Group] = []
    for draw in range(1, REFERENCE_DRAWS + 1):
        groups += collect(-draw)
        found = {names[i]: Moments().joined(term_values(groups, i)) for i in wanted}
        if all(moments.count >= REFERENCE_ANSWERS for moments in found.values()):
            write_sealed(path, {"terms": moments_to_json(found)})
            return found
    name, least = min(found.items(), key=lambda item: item[1].count)
    answers = sum(len(group.answers) for group in groups)
    raise RlaifError(
        f"`normalise: reference` needs {REFERENCE_ANSWERS} answers of the start policy with a "
        f"value of {name!r}, and {least.count} of {answers} have one. Look at the judgements in "
        f"{work.parent}, or set `normalise: running`"
    )


def moments_to_json(moments: Mapping[str, Moments]) -> dict[str, dict[str, float]]:
    """Moments by name as a checkpoint keeps them."""
    return {name: asdict(own) for name, own in moments.items()}


def moments_from_json(rows: Mapping[str, Mapping[str, float]]) -> dict[str, Moments]:
    """What `moments_to_json` gave."""
    return {
        name: Moments(int(row["count"]), row["mean"], row["squares"]) for name, row in rows.items()
    }


def reward_metrics(
    groups: Sequence[Group], terms: Sequence[RewardTerm], moments: Mapping[str, Moments]
) -> dict[str, float]:
    """By term, with its NAME: the mean of the judge's values before anything is done to them
    (`value/`), the share of answers that lack one (`missing/`), of the answers that the term is
    for; the share of all answers that it is for (`counts/`); what it adds to the mean reward
    (`contribution/`); and what it is normalised by (`normal_mean/`, `normal_spread/`)."""
    answers = [answer for group in groups for answer in group.answers]
    columns = [_contributions(group, terms, moments) for group in groups]
    rewarded = [
        parts
        for column in columns
        for parts in zip(*column, strict=True)
        if _total_reward(parts) is not None
    ]
    found = {}
    for place, name in enumerate(names_of(terms)):
        values = term_values(groups, place)
        meant = sum(place not in answer.idle for answer in answers)
        if values:
            found[f"value/{name}"] = math.fsum(values) / len(values)
        if meant:
            found[f"missing/{name}"] = 1 - len(values) / meant
        found[f"counts/{name}"] = meant / len(answers)
        if rewarded:
            parts = [own[place] or 0.0 for own in rewarded]
            found[f"contribution/{name}"] = math.fsum(parts) / len(parts)
        if name in moments:
            found[f"normal_mean/{name}"] = moments[name].mean
            found[f"normal_spread/{name}"] = moments[name].spread
    return found
