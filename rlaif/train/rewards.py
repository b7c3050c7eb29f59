"""From the judges' values of sampled answers to one reward each: a sum of weighted terms.

All of it is in fp64, before anything is cast: two rewards of 20 that differ by 1e-6 differ here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rlaif.config.rewards import REFERENCE_ANSWERS, RewardTerm
from rlaif.core.errors import RlaifError, StoreError
from rlaif.core.integrity import read_sealed, write_sealed
from rlaif.train.losses.policy import FLAT
from rlaif.train.rollout import Group

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


def term_names(terms: Sequence[RewardTerm]) -> list[str]:
    """What the terms go by in metrics and files: the judge, and its place where it has several."""
    judges = [term.judge for term in terms]
    return [
        term.judge if judges.count(term.judge) == 1 else f"{term.judge}/{place}"
        for place, term in enumerate(terms, start=1)
    ]


def term_values(groups: Iterable[Group], place: int) -> list[float]:
    """The values of one term that are there, of the answers that it is for."""
    return [
        value
        for group in groups
        if group.counts(place)
        for answer in group.answers
        for value in [answer.values[place]]
        if value is not None
    ]


def updated(
    running: Mapping[str, Moments], groups: Sequence[Group], terms: Sequence[RewardTerm]
) -> dict[str, Moments]:
    """The moments of the terms of `normalise: running`, by name, with these answers."""
    return {
        name: running.get(name, Moments()).joined(term_values(groups, place))
        for place, (name, term) in enumerate(zip(term_names(terms), terms, strict=True))
        if term.normalise == "running"
    }


def summed(
    groups: Sequence[Group], terms: Sequence[RewardTerm], moments: Mapping[str, Moments]
) -> list[list[float | None]]:
    """By group each answer's reward; None where a term that is for the prompt has no value, and 0
    without any terms. `moments` are those of the terms of `normalise: reference` and `running`, by
    name."""
    if not terms:
        return [[0.0] * len(group.answers) for group in groups]
    names = term_names(terms)
    return [
        [
            _total_reward(parts)
            for parts in zip(*_term_columns(group, terms, names, moments), strict=True)
        ]
        for group in groups
    ]


def _term_columns(
    group: Group, terms: Sequence[RewardTerm], names: Sequence[str], moments: Mapping[str, Moments]
) -> list[list[float | None]]:
    """What each term adds to each answer's reward."""
    found: list[list[float | None]] = []
    for place, (term, name) in enumerate(zip(terms, names, strict=True)):
        if not group.counts(place):
            found.append([0.0] * len(group.answers))
            continue
        scale = moments.get(name)
        if term.normalise == "group":
            scale = Moments().joined(term_values([group], place))
        values = [answer.values[place] for answer in group.answers]
        found.append([None if v is None else _scale_value(term, scale, v) for v in values])
    return found


def _scale_value(term: RewardTerm, scale: Moments | None, value: float) -> float:
    if term.normalise != "none":
        assert scale is not None
        equal = term.normalise == "group" and scale.flat
        value = 0.0 if equal else scale.standardised(value)
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
    names = term_names(terms)
    wanted = [place for place, term in enumerate(terms) if term.normalise == "reference"]
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
    """The mean of each judge's values before anything is done to them, and what they are
    normalised by: `value/NAME`, `normal_mean/NAME`, `normal_spread/NAME`."""
    found = {}
    for place, name in enumerate(term_names(terms)):
        values = term_values(groups, place)
        if values:
            found[f"value/{name}"] = math.fsum(values) / len(values)
        if name in moments:
            found[f"normal_mean/{name}"] = moments[name].mean
            found[f"normal_spread/{name}"] = moments[name].spread
    return found
