"""Win rates of generators as AlpacaEval counts them, raw and length-controlled, and a ranking.

Percentages are on 0 to 100. The unit is the prompt, for every interval: its battles go together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlaif.core.groups import group_by
from rlaif.metrics.ends import share_ends
from rlaif.metrics.intervals import Interval, one_interval
from rlaif.metrics.length_control import length_controlled
from rlaif.metrics.ranking import Comparison, Rating, bradley_terry, connected_groups

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CONSTANT_SHARE = 0.5
"""An output that makes up at least this share of a generator's answers is called constant."""
MIN_CONSTANT = 5
"""Fewer instructions than this say nothing about constancy."""


@dataclass(frozen=True, slots=True)
class Battle:
    """Two generators' outputs for one instruction, and the probability that the second is better.

    `lengths` are in characters and `outputs` hashes of the texts, None where a text is not known;
    `place` says where the battle was read.
    """

    prompt_id: str
    first: str
    second: str
    prob_second: float | None
    lengths: tuple[int | None, int]
    outputs: tuple[str | None, str]
    place: str = ""

    def swapped(self) -> Battle | None:
        """The battle seen from the other side; None where the first text is not known."""
        length, output = self.lengths[0], self.outputs[0]
        if length is None or output is None:
            return None
        prob = None if self.prob_second is None else 1 - self.prob_second
        sides = (self.lengths[1], length), (self.outputs[1], output)
        return Battle(self.prompt_id, self.second, self.first, prob, *sides, self.place)

    @property
    def identity(self) -> tuple[str, frozenset[tuple[str, str | None]]]:
        """What two rows have in common that are the same battle: prompt, generators and outputs."""
        sides = zip((self.first, self.second), self.outputs, strict=True)
        return self.prompt_id, frozenset(sides)


@dataclass(frozen=True, slots=True)
class WinRate:
    """One generator against the baseline, or against all others where there is no one baseline.

    `win_rate` counts the probability that the generator's output is better, `discrete_win_rate` its
    side of 0.5; ties are a half. `standard_error` is that of the mean over battles, those of one
    prompt together; `low` and `high` are the ends of the win rate's 95% interval. Either is None
    for one prompt. `n_repeated` rows are the same battle as an earlier one. Of the rates at equal
    length at most one is there (see `LengthControlled`), with its interval; `lc_note` says why none
    is. `constant` is the share of the most frequent output; `is_constant` flags it.
    """

    generator: str
    win_rate: float
    low: float | None
    high: float | None
    standard_error: float | None
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    n_prompts: int
    n_repeated: int
    n_missing: int
    discrete_win_rate: float
    avg_length: float
    longer: float | None
    lc_minimal: float | None
    lc_small_n: float | None
    lc_low: float | None
    lc_high: float | None
    lc_note: str | None
    constant: float
    is_constant: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """A group of generators that are linked by battles: win rates against its baseline (None:
    against all others), best first, and ratings, which one that met itself alone lacks."""

    baseline: str | None
    win_rates: list[WinRate]
    ratings: list[Rating]


def compute_standings(battles: Sequence[Battle]) -> list[Standing]:
    """The largest group of generators that met, then the others. Battles without a verdict link
    nobody; a generator without any verdict is in no group."""
    judged = [b for b in battles if b.prob_second is not None]
    names = sorted({name for b in judged for name in (b.first, b.second)})
    groups = connected_groups(names, [(b.first, b.second) for b in judged])
    groups.sort(key=lambda group: (-len(group), min(group)))
    return [
        _compute_standing([b for b in battles if {b.first, b.second} <= group]) for group in groups
    ]


def _compute_standing(battles: Sequence[Battle]) -> Standing:
    baseline = single_baseline(battles)
    shares = _share_rows(battles)
    fought = [
        Comparison(b.prompt_id, b.first, b.second, 1 - b.prob_second, shares[b.identity])
        for b in battles
        if b.prob_second is not None and b.first != b.second
    ]
    ratings = bradley_terry(fought, baseline) if fought else []
    return Standing(baseline, win_rates(battles), ratings)


def find_repeats(battles: Sequence[Battle]) -> list[list[Battle]]:
    """The battles that have the same prompt, generators and outputs as another, together."""
    found = group_by(battles, lambda battle: battle.identity)
    return [same for same in found.values() if len(same) > 1]


def single_baseline(battles: Sequence[Battle]) -> str | None:
    """The generator that is first in every battle, if there is one."""
    firsts = {battle.first for battle in battles}
    return firsts.pop() if len(firsts) == 1 else None


def win_rates(battles: Sequence[Battle]) -> list[WinRate]:
    """Every generator's win rate, best first. Generators without any verdict are left out."""
    baseline = single_baseline(battles)
    sides: dict[str, list[Battle]] = {}
    for battle in battles:
        sides.setdefault(battle.second, []).append(battle)
        turned = battle.swapped() if baseline is None else None
        if turned is not None:
            sides.setdefault(turned.second, []).append(turned)
    found = [_win_rate(name, fought) for name, fought in sides.items()]
    return sorted((w for w in found if w is not None), key=lambda w: (-w.win_rate, w.generator))


def _win_rate(generator: str, battles: Sequence[Battle]) -> WinRate | None:
    judged = [b for b in battles if b.prob_second is not None]
    probs = np.asarray([b.prob_second for b in judged], dtype=np.float64)
    if not probs.size:
        return None
    total, wins, draws = probs.size, int((probs > 0.5).sum()), int((probs == 0.5).sum())
    gaps = [None if b.lengths[0] is None else b.lengths[0] - b.lengths[1] for b in judged]
    known = np.asarray([gap for gap in gaps if gap is not None], dtype=np.float64)
    units = np.unique([b.prompt_id for b in judged], return_inverse=True)[1]
    rate = win_rate_interval(probs, units)
    shares = _share_rows(judged)
    weights = np.asarray([shares[b.identity] for b in judged])
    controlled = length_controlled(probs, known if known.size == total else None, units, weights)
    constant = Counter(b.outputs[1] for b in battles).most_common(1)[0][1] / len(battles)
    return WinRate(
        generator=generator,
        win_rate=100 * rate.mean,
        low=_to_percent(rate.low),
        high=_to_percent(rate.high),
        standard_error=_to_percent(rate.se),
        n_wins=wins,
        n_wins_base=total - wins - draws,
        n_draws=draws,
        n_total=total,
        n_prompts=int(units.max()) + 1,
        n_repeated=total - len(shares),
        n_missing=len(battles) - total,
        discrete_win_rate=100 * (wins + draws / 2) / total,
        avg_length=float(np.mean([b.lengths[1] for b in battles])),
        longer=float((known < 0).mean()) if known.size else None,
        lc_minimal=controlled.minimal,
        lc_small_n=controlled.small_n,
        lc_low=controlled.low,
        lc_high=controlled.high,
        lc_note=controlled.note,
        constant=constant,
        is_constant=len(battles) >= MIN_CONSTANT and constant >= CONSTANT_SHARE,
    )


def _share_rows(
    battles: Sequence[Battle],
) -> dict[tuple[str, frozenset[tuple[str, str | None]]], float]:
    """What a row is worth by its identity: 1 over how many judged rows are the same battle."""
    counts = Counter(b.identity for b in battles if b.prob_second is not None)
    return {identity: 1 / count for identity, count in counts.items()}


def win_rate_interval(probs: Floats, units: Ints) -> Interval:
    """K1 of the mean over battles: Wilson's interval with the effective n that the variance over
    prompts gives. `units` number the prompts from 0; those of one go together (Liang & Zeger 1986).
    """
    mean = probs.mean(keepdims=True)
    sums = np.bincount(units, weights=probs - mean)
    prompts = sums.size
    square = np.full(1, np.nan)
    if prompts > 1:
        square[0] = prompts / (prompts - 1) * float(sums @ sums) / probs.size**2
    return one_interval(share_ends(mean, square, prompts, 0.5), probs.size, prompts)


def _to_percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
