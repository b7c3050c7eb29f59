"""Figures of given pairs: do two annotators agree, and does a policy agree with one? Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rlaif.core.labelled import GivenPair
from rlaif.metrics.agreement import cohen_kappa
from rlaif.metrics.intervals import IntervalJson
from rlaif.metrics.metrics import Values, per_prompt
from rlaif.metrics.pooled import figure_intervals
from rlaif.metrics.weighted import Figure, mean_of
from rlaif.preferences.labels import Verdicts

Choices = Mapping[str, tuple[str, bool]]
"""Pair id to its prompt's id and whether the first answer was chosen."""


def label_agreement(first: Choices, second: Choices) -> dict[str, IntervalJson]:
    """`agreement` (share of pairs with the same choice, [0, 1]) and `kappa` (Cohen's, [-1, 1]).

    Over the pairs that both have, with intervals over prompts. Kappa is missing where chance alone
    would agree always, as it does of one-sided labels.
    """
    common = sorted(first.keys() & second.keys())
    one, other = (
        np.asarray([labels[name][1] for name in common], dtype=np.float64)
        for labels in (first, second)
    )

    if not common:
        return {}
    prompts = [first[name][0] for name in common]
    figures = {
        "agreement": mean_of((one == other).astype(np.float64)),
        "kappa": Figure(cohen_kappa(one, other), one.size),
    }
    intervals = figure_intervals(figures, prompts)
    return {name: interval.to_json() for name, interval in intervals.items()}


def reward_accuracy(
    pairs: Sequence[GivenPair],
    new: Mapping[str, float],
    old: Mapping[str, float],
    verdicts: Verdicts,
) -> Values:
    """Per prompt, the share of pairs whose better answer has the larger implicit reward.

    That is DPO's reward but for beta (2305.18290, section 4): the answer's summed log-prob under
    the policy less that under M0; `new` and `old` give them by completion id, in nats. Equal
    rewards count half; a pair without a verdict, with a tie or without a log-prob does not count.
    """
    rewards = {name: new[name] - old[name] for name in new.keys() & old.keys()}
    found: list[tuple[str, float]] = []
    for pair in pairs:
        verdict = verdicts.get(pair.pair_id, 0.5)
        first, second = rewards.get(pair.first), rewards.get(pair.second)
        if verdict == 0.5 or first is None or second is None:
            continue
        right = 0.5 if first == second else float((first > second) == (verdict > 0.5))
        found.append((pair.prompt_id, right))
    return per_prompt(found)
