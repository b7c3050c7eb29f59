"""From one judge's judgements of labelled pairs to arrays that figures are computed from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import fsum
from statistics import fmean
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rlaif.core.labelled import LabelledPair
from rlaif.core.records import VALUED, Judgement, content_hash
from rlaif.preferences.aggregate import answer_probability, principle_weight, weighted_mean

Floats = NDArray[np.float64]
FOLDS = 2


@dataclass(frozen=True, slots=True)
class Cost:
    """Questions to a model, and what their answers took where that is known: seconds, tokens that
    the model read and wrote, and money in the currency of the model's price."""

    calls: float = 0.0
    seconds: float | None = None
    prompt_tokens: float | None = None
    new_tokens: float | None = None
    money: float | None = None


def total_cost(costs: Iterable[Cost]) -> Cost:
    """All of them; what none of them knows stays unknown."""
    every = list(costs)
    known = {f.name: [getattr(c, f.name) for c in every] for f in fields(Cost)}
    some = {name: [x for x in column if x is not None] for name, column in known.items()}
    return Cost(**{name: fsum(column) for name, column in some.items() if column})


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judge on one pair: P(the first answer is better), None where it is missing.

    `as_first` is that probability from the calls that showed the first answer first, `as_second`
    from those that showed it second (comparative judges only). The counts are of judgements.
    """

    prob: float | None
    as_first: float | None
    as_second: float | None
    judgements: int
    abstained: int
    unread: int
    slot_one: int
    slot_decided: int
    label_mass: float | None
    cost: Cost


def make_verdict(
    pair: LabelledPair,
    judgements: Sequence[Judgement],
    weights: Mapping[str, float] | None = None,
    cost: Cost = Cost(),
) -> Verdict:
    """What the judgements of one pair say together: samples, orders and principles as everywhere
    (`aggregate.answer_probability`)."""
    asked = [j for j in judgements if j.status != "not_applicable"]
    compared = [j for j in asked if len(j.shown) == 2 and j.status in VALUED]
    leaning = [j.prob_first for j in compared if j.prob_first not in (None, 0.5)]
    masses = [j.label_mass for j in asked if j.label_mass is not None]
    return Verdict(
        prob=answer_probability(
            judgements, pair.first.completion_id, pair.second.completion_id, weights
        ),
        as_first=_in_slot(pair, compared, weights, True),
        as_second=_in_slot(pair, compared, weights, False),
        judgements=len(asked),
        abstained=sum(j.status in ("abstain", "both_bad") for j in asked),
        unread=sum(j.status in ("unparsed", "failed") for j in asked),
        slot_one=sum(prob is not None and prob > 0.5 for prob in leaning),
        slot_decided=len(leaning),
        label_mass=fmean(masses) if masses else None,
        cost=cost,
    )


def _in_slot(
    pair: LabelledPair,
    compared: Iterable[Judgement],
    weights: Mapping[str, float] | None,
    as_first: bool,
) -> float | None:
    shown_first = (pair.first if as_first else pair.second).completion_id
    if pair.first.completion_id == pair.second.completion_id:
        return None
    prob = weighted_mean(
        (j.prob_first, principle_weight(j.principle, weights))
        for j in compared
        if j.shown[0] == shown_first and j.prob_first is not None
    )
    return prob if prob is None or as_first else 1.0 - prob


@dataclass(frozen=True, slots=True)
class VerdictTable:
    """Pairs by column, each of shape (n,); NaN is missing.

    `label` and `prob` are P(first better) by the annotator and by the judge; `longer_by` is in
    characters; `own` is 1 or -1 where the first or the second answer alone is the judge's own, else
    0; `same` is the share of pairs of repeated runs that gave the same verdict.
    """

    prompt: NDArray[np.str_]
    subset: NDArray[np.str_]
    fold: NDArray[np.int64]
    label: Floats
    longer_by: Floats
    own: Floats
    prob: Floats
    as_first: Floats
    as_second: Floats
    judgements: Floats
    abstained: Floats
    unread: Floats
    slot_one: Floats
    slot_decided: Floats
    label_mass: Floats
    calls: Floats
    seconds: Floats
    prompt_tokens: Floats
    new_tokens: Floats
    money: Floats
    same: Floats

    def take(self, rows: NDArray[np.int64]) -> Self:
        """The table of these rows, in their order and as often as they are named."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def verdict_table(
    pairs: Sequence[LabelledPair], runs: Sequence[Sequence[Verdict]], author: str | None = None
) -> VerdictTable:
    """One judge's verdicts on `pairs`. `runs` are its repeated runs, of which all but `same` takes
    the first; `author` is the name under which its own answers appear."""
    first = runs[0]
    names = [f.name for f in fields(Verdict) if f.name != "cost"]
    columns = {name: floats_of(getattr(v, name) for v in first) for name in names}
    columns |= {f.name: floats_of(getattr(v.cost, f.name) for v in first) for f in fields(Cost)}
    repeats = np.stack([floats_of(v.prob for v in run) for run in runs])
    prompts = [p.prompt.prompt_id for p in pairs]
    return VerdictTable(
        prompt=np.asarray(prompts),
        subset=np.asarray([p.subset or "" for p in pairs]),
        fold=np.asarray([_fold_of(p) for p in prompts], dtype=np.int64),
        label=floats_of(p.label for p in pairs),
        longer_by=floats_of(float(len(p.first.text) - len(p.second.text)) for p in pairs),
        own=floats_of(_side_of_author(p.authors, author) for p in pairs),
        same=_same_verdicts(repeats),
        **columns,
    )


def rows_by_name(names: NDArray[np.str_]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Each name but "" and the rows that have it, in order of name."""
    for name in sorted(set(names.tolist()) - {""}):
        yield name, np.flatnonzero(names == name)


def floats_of(values: Iterable[float | None]) -> Floats:
    """The values as a column, NaN for those that are missing."""
    return np.asarray([np.nan if v is None else float(v) for v in values], dtype=np.float64)


def _fold_of(prompt_id: str) -> int:
    return int(content_hash("fold", prompt_id, length=8), 16) % FOLDS


def _side_of_author(authors: tuple[str, str] | None, author: str | None) -> float:
    if authors is None or author is None:
        return 0.0
    return float(authors[0] == author) - float(authors[1] == author)


def _same_verdicts(repeats: Floats) -> Floats:
    """Per pair, the share of pairs of runs whose verdict is the same; `repeats` is (runs, n)."""
    count = repeats.shape[0]
    sides = np.where(np.isnan(repeats), np.nan, np.sign(repeats - 0.5))
    both, same = np.zeros(repeats.shape[1]), np.zeros(repeats.shape[1])
    for i in range(count):
        for j in range(i):
            both += ~np.isnan(sides[i] - sides[j])
            same += sides[i] == sides[j]
    return np.where(both > 0, same / np.maximum(both, 1), np.nan)
