"""Leave one principle out of a finished run: what of its preferences hangs on that principle?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlaif.analysis.whatif import (
    Effect,
    LabelledCandidates,
    Pairing,
    agreements,
    effect,
    find_labelled,
    load_pairings,
    prompt_means,
)
from rlaif.core.labelled import LabelledPair
from rlaif.metrics.intervals import Interval, paired_interval
from rlaif.metrics.metrics import value_interval
from rlaif.pipeline.runs import Run, principle_weights, run_constitution


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One principle left out. `agreement` is the share of labels that the scores side with then,
    `change` that less the agreement with it, on the same labels; both over prompts."""

    principle: str
    weight: float
    judgements: int
    effect: Effect
    agreement: Interval | None = None
    change: Interval | None = None


@dataclass(frozen=True, slots=True)
class Ablation:
    """Every principle that was judged and counts. `agreement` is with all of them; `labelled` the
    number of labels that are no tie and have scores, `strange` that of labelled pairs which are not
    about this run's answers."""

    rows: tuple[LeftOut, ...]
    labelled: int
    strange: int
    agreement: Interval | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; an interval is an object with mean, low, high and n."""
        return asdict(self)


def ablate(run: Run, labels: Sequence[LabelledPair] | None = None) -> Ablation:
    """The ablation of every principle in turn, from stored judgements alone.

    Raises ConfigError when the run has no constitution, no finished pairs made from judgements, or
    none of the labelled pairs.
    """
    weights = principle_weights(run_constitution(run))
    pairings = load_pairings(run)
    judged = _judged(pairings)
    labelled, strange = find_labelled(pairings, labels) if labels is not None else ([], 0)
    whole = agreements(pairings, labelled, weights)
    rows = []
    for name in (n for n, weight in weights.items() if weight > 0 and judged.get(n)):
        without = {**weights, name: 0.0}
        values = agreements(pairings, labelled, without)
        both = [a is not None and b is not None for a, b in zip(values, whole, strict=True)]
        now, then = (
            by_prompt(labelled, [v if known else None for v, known in zip(side, both, strict=True)])
            for side in (values, whole)
        )
        rows.append(
            LeftOut(
                name,
                weights[name],
                judged[name],
                effect(pairings, weights, without),
                value_interval("vote_accuracy", by_prompt(labelled, values)),
                paired_interval(now, then),
            )
        )
    known = sum(value is not None for value in whole)
    found = value_interval("vote_accuracy", by_prompt(labelled, whole))
    return Ablation(tuple(rows), known, strange, found)


def _judged(pairings: Sequence[Pairing]) -> dict[str, int]:
    """How many different judgements by counted judges there are about each principle."""
    ids: dict[str, set[str]] = defaultdict(set)
    for pairing in pairings:
        for judge in pairing.counted():
            for rows in pairing.judgements[judge].values():
                for judgement in rows:
                    if judgement.principle is not None:
                        ids[judgement.principle].add(judgement.judgement_id)
    return {principle: len(found) for principle, found in ids.items()}


def by_prompt(
    labelled: Sequence[LabelledCandidates], values: Sequence[float | None]
) -> dict[str, float]:
    """The mean by prompt of one value per labelled pair, missing ones left out."""
    rows: dict[str, list[float]] = defaultdict(list)
    for pair, value in zip(labelled, values, strict=True):
        if value is not None:
            rows[pair.prompt_id].append(value)
    return prompt_means(rows)
