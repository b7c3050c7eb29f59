"""What each principle says of a pair of answers, and the weights by which people agree most.

A principle's vote for a pair is its value of the first answer less that of the second, on [-1, 1];
for a comparison with win probability p it is 2p - 1. Where people prefer the first answer with
probability sigmoid(sum of w_k vote_k), the w_k are the weights under which the combined score ranks
as they do: for one prompt it is, up to a factor, the same sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlaif.core.groups import group_by
from rlaif.core.records import Judgement
from rlaif.metrics.figure_rules import rule_of
from rlaif.metrics.intervals import Interval, paired_interval
from rlaif.metrics.metrics import Values, per_prompt, value_interval
from rlaif.metrics.pooled import jackknife_interval, left_out
from rlaif.metrics.ridge import Array, cross_validate, fit_ridge
from rlaif.preferences.aggregate import pointwise_values, win_rates

Votes = Mapping[str, float | None]
"""A vote by principle id; None where it is missing. A principle that does not apply is absent."""


@dataclass(frozen=True, slots=True)
class VotedPair:
    """One labelled pair: `label` is P(first is better), on [0, 1], and 0.5 a tie."""

    prompt_id: str
    votes: Votes
    label: float


@dataclass(frozen=True, slots=True)
class FittedWeight:
    """One principle. `coefficient` may be negative: people go against it. Its ends are those of a
    95% interval over prompts (None of one prompt). `weight` is what the constitution gets: fitted
    under w >= 0, on the scale of the weights it replaces. `votes` is the number of votes other than
    0."""

    principle: str
    coefficient: float
    low: float | None
    high: float | None
    weight: float
    current: float
    votes: int


@dataclass(frozen=True, slots=True)
class WeightFit:
    """Fitted weights, and how often they side with labels that their fold did not see.

    `left_out` pairs lack a vote. Agreements and `change` (fitted less current weights) are over
    prompts, on labels that are no tie. `log_loss` is held out, in nats per pair.
    """

    weights: tuple[FittedWeight, ...]
    pairs: int
    prompts: int
    left_out: int
    l2: float
    log_loss: float
    agreement: Interval | None
    current_agreement: Interval | None
    change: Interval | None


def principle_votes(
    judgements: Iterable[Judgement], first: str, second: str
) -> dict[str, float | None]:
    """The vote of each principle by which one judge judged both answers, of completion ids `first`
    and `second`. Judgements under no principle are passed over."""
    kept = {first, second}
    about = (j for j in judgements if j.principle is not None and set(j.shown) <= kept)
    votes: dict[str, float | None] = {}
    for principle, group in group_by(about, lambda j: j.principle or "").items():
        compared = [j for j in group if len(j.shown) == 2]
        if compared:
            value, applied = win_rates(compared)[first]
            if applied:
                votes[principle] = None if value is None else 2 * value - 1
            continue
        found = pointwise_values(group)
        (a, a_applied), (b, b_applied) = (found.get(x, (None, False)) for x in (first, second))
        if a_applied and b_applied:
            votes[principle] = None if a is None or b is None else a - b
    return votes


def fit_weights(
    pairs: Sequence[VotedPair], current: Mapping[str, float], folds: int = 5, seed: int = 0
) -> WeightFit:
    """Fit the weight of every principle of `current` that has a vote other than 0.

    The penalty is chosen by `folds`-fold cross-validation over prompts. Pairs in which a vote is
    missing are left out. Raises ValueError when no principle tells any pair apart or when there
    are fewer prompts than folds.
    """
    whole = [p for p in pairs if None not in p.votes.values()]
    counts = {name: sum(bool(p.votes.get(name)) for p in whole) for name in current}
    names = [name for name, count in counts.items() if count]
    if not names:
        raise ValueError("no principle has a vote other than 0")
    x = np.asarray([[p.votes.get(name) or 0.0 for name in names] for p in whole], dtype=np.float64)
    y = np.asarray([p.label for p in whole], dtype=np.float64)
    prompts = [p.prompt_id for p in whole]
    validated = cross_validate(x, y, prompts, folds, seed, nonnegative=True)
    fitted = fit_ridge(x, y, validated.l2, nonnegative=True)
    coefficients = fit_ridge(x, y, validated.l2)
    ends = _coefficient_intervals(x, y, prompts, validated.l2, coefficients)
    old = np.asarray([current[name] for name in names], dtype=np.float64)
    scaled = _on_scale(fitted, old)
    columns = zip(names, coefficients.tolist(), ends, scaled.tolist(), strict=True)
    rows = [
        FittedWeight(name, fit, end.low, end.high, weight, current[name], counts[name])
        for name, fit, end, weight in columns
    ]
    ours = _agreement_by_prompt(prompts, validated.predictions - 0.5, y)
    theirs = _agreement_by_prompt(prompts, x @ old, y)
    return WeightFit(
        tuple(rows),
        len(whole),
        len(set(prompts)),
        len(pairs) - len(whole),
        validated.l2,
        validated.log_loss,
        value_interval("vote_accuracy", ours),
        value_interval("vote_accuracy", theirs),
        paired_interval(ours, theirs),
    )


def _coefficient_intervals(
    x: Array, y: Array, prompts: Sequence[str], l2: float, coefficients: Array
) -> list[Interval]:
    """Each coefficient's interval, from the fits without each prompt (or block of prompts)."""
    names, code = np.unique(np.asarray(prompts), return_inverse=True)
    block = left_out(names.size)[code]
    fits = np.stack(
        [fit_ridge(x[block != b], y[block != b], l2) for b in range(int(block.max()) + 1)]
    )
    rule = rule_of("weight/")
    return [
        jackknife_interval(float(value), fits[:, k], rule, len(y), names.size)
        for k, value in enumerate(coefficients)
    ]


def _on_scale(fitted: Array, old: Array) -> Array:
    """The fitted weights with the sum that the old ones had (one each where that is 0)."""
    total = old.sum() or float(len(old))
    return fitted * (total / fitted.sum()) if fitted.sum() > 0 else fitted


def _agreement_by_prompt(prompts: Sequence[str], differences: Array, labels: Array) -> Values:
    """Per prompt, how often the differences side with labels that are no tie."""
    rows = zip(prompts, differences.tolist(), labels.tolist(), strict=True)
    return per_prompt((p, side_with_label(d, label)) for p, d, label in rows if label != 0.5)


def side_with_label(difference: float, label: float) -> float:
    """1 where a difference (first less second) sides with the label, 0 where not, 0.5 for 0."""
    if difference == 0:
        return 0.5
    return float((difference > 0) == (label > 0.5))
