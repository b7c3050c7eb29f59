"""Figures of labelled pairs in clusters, as the product computes them and leaves prompts out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from rlaif.core.numbers import sigmoids
from rlaif.metrics import agreement, calibration
from rlaif.metrics import agreement as agree
from rlaif.metrics.active_choice import hajek_weights, inclusion_probabilities
from rlaif.metrics.calibration import calibration_error
from rlaif.metrics.disagreement import ceiling_figures, log_losses
from rlaif.metrics.ends import Ends
from rlaif.metrics.figure_rules import rule_of
from rlaif.metrics.intervals import Interval
from rlaif.metrics.judge_figures import joint_votes
from rlaif.metrics.penalised import fit_logistic
from rlaif.metrics.pooled import figure_intervals
from rlaif.metrics.reward_figures import RewardTable, reward_figures
from rlaif.metrics.rewardbench import SECTIONS, section_scores
from rlaif.metrics.votes import VotedPair, fit_weights
from rlaif.metrics.weighted import Figure, mean_of, ratio, share_of

from .data import Array, Rng, cluster_sizes

TRUTH_PROMPTS = 40_000
"""The truth of a figure is its value on so many prompts."""


@dataclass(frozen=True)
class Pairs:
    """Labelled pairs, (n,) each: their prompts' numbers, P(first) of two judges, P(first) said by
    people (0 or 1), how much longer the first is, and which answer is the judge's own."""

    prompt: Array
    prob: Array
    other: Array
    label: Array
    longer: Array
    own: Array


def draw_pairs(rng: Rng, prompts: int) -> Pairs:
    """One to nine pairs to a prompt, which share how easy they are to judge, and a leaning of both
    judges to err there."""
    sizes = np.minimum(cluster_sizes(rng, (prompts,)), 5)
    prompt = np.repeat(np.arange(prompts), sizes)
    n = prompt.size
    quality = rng.normal(0, 1.5, n)
    longer = rng.normal(0, 1, n)
    shared = rng.normal(0, 0.5, prompts)[prompt]
    own = rng.choice([-1.0, 0.0, 1.0], n)
    seen, other = (
        quality + shared + 0.3 * longer + 0.2 * own + rng.normal(0, 0.7, n) for _ in range(2)
    )
    label = (rng.random(n) < sigmoids(quality)).astype(float)
    return Pairs(prompt, sigmoids(seen), sigmoids(other), label, longer, own)


def draw_nothing(rng: Rng, prompts: int) -> Pairs:
    """Pairs of which neither judge knows anything: no figure of agreement or bias is above chance,
    and the judges' errors have nothing to do with one another."""
    pairs = draw_pairs(rng, prompts)
    n = pairs.prompt.size
    prob, other = (sigmoids(rng.normal(0, 1.5, n)) for _ in range(2))
    return replace(pairs, prob=prob, other=other, label=(rng.random(n) < 0.5).astype(float))


Draw = Callable[[Rng, int], Pairs]
CLUSTERED = "pairs in clusters"
DRAWS: dict[str, Draw] = {CLUSTERED: draw_pairs, "nothing to it": draw_nothing}
NULL_FIGURES = (
    *("kappa", "alpha", "spearman", "kendall", "length_coefficient", "self_preference"),
    *("difference", "length_spearman", "weight/"),
)
"""The figures that are 0 where there is nothing to it."""
Of = Callable[[Pairs], Interval | None]
Drawn = tuple[str, Of]


def _of_figure(name: str, make: Callable[[Pairs], Figure]) -> Drawn:
    def of(pairs: Pairs) -> Interval | None:
        return figure_intervals({name: make(pairs)}, pairs.prompt).get(name)  # type: ignore[arg-type]

    return name, of


def _sides(pairs: Pairs) -> tuple[Array, Array]:
    return np.sign(pairs.prob - 0.5), np.sign(pairs.label - 0.5)


def _whole(measure: Any, pairs: Pairs) -> Figure:
    return Figure(measure, pairs.prompt.size)


def _line(pairs: Pairs, place: int) -> Figure:
    logits = calibration.log_odds(pairs.prob)
    line = np.stack([np.ones_like(logits), logits], axis=1)
    return _whole(lambda w: fit_logistic(line, pairs.label, w)[:, place], pairs)


def _temperature(pairs: Pairs) -> Figure:
    found = calibration.measure_steepness(calibration.log_odds(pairs.prob), pairs.label)
    return _whole(lambda w: ratio(np.ones(len(w)), found(w)), pairs)


def _brier_scaled(pairs: Pairs) -> Figure:
    scaled = calibration.scale_held_out(pairs.prob, pairs.label, pairs.prompt % 2)
    return _whole(lambda w: calibration.brier(scaled(w), pairs.label, w), pairs)


def _correctness(pairs: Pairs) -> tuple[Array, Array]:
    right = pairs.label > 0.5
    return tuple(((p > 0.5) == right).astype(float) for p in (pairs.prob, pairs.other))  # type: ignore[return-value]


def _votes(pairs: Pairs) -> Interval | None:
    prompt = np.char.mod("%06d", pairs.prompt)
    tables = {
        name: SimpleNamespace(prob=prob, label=pairs.label, prompt=prompt)
        for name, prob in (("a", pairs.prob), ("b", pairs.other))
    }
    return joint_votes(tables)  # type: ignore[arg-type]


def _rewards(name: str) -> Callable[[Pairs], Figure]:
    def of(pairs: Pairs) -> Figure:
        chosen, rejected = np.log(pairs.prob), np.log(pairs.other)
        empty = np.zeros(pairs.prompt.size, dtype=str)
        lengths = np.exp(pairs.longer), np.ones_like(pairs.longer)
        prompt = pairs.prompt.astype(str)
        table = RewardTable(prompt, empty, empty, chosen, rejected, *lengths, pairs.label)
        return reward_figures(table)[name]

    return of


def _section(pairs: Pairs) -> Figure:
    names = [name for part in SECTIONS.values() for name in list(part)[:2]]
    subset = np.asarray(names)[pairs.prompt % len(names)]
    return section_scores(SimpleNamespace(subset=subset, prob=pairs.prob, label=pairs.label))[  # type: ignore[arg-type]
        "rewardbench/Chat"
    ]


def _weight(pairs: Pairs) -> Interval | None:
    rows = [
        VotedPair(f"{p:06d}", {"a": 2 * x - 1, "b": 2 * y - 1}, z)
        for p, x, y, z in zip(pairs.prompt, pairs.prob, pairs.other, pairs.label, strict=True)
    ]
    row = fit_weights(rows, {"a": 1.0, "b": 1.0}, folds=2).weights[0]
    return Interval(row.coefficient, row.low, row.high, len(rows))


def _ceiling(name: str) -> Callable[[Pairs], Figure]:
    """The label and the second judge's side as two votes, which the first judge predicts."""

    def of(pairs: Pairs) -> Figure:
        votes = np.stack([pairs.label, pairs.other > 0.5]).astype(float)
        alone = log_losses(pairs.prob, votes.mean(axis=0))
        return ceiling_figures(alone, (votes[0] != votes[1]).astype(float))[name]

    return of


def _drawn_share(pairs: Pairs) -> Figure:
    """How often the judge is right, from about half of the pairs, the uncertain ones likelier."""
    probability = inclusion_probabilities(
        1.0 - np.abs(2.0 * pairs.prob - 1.0), pairs.prompt.size / 2
    )
    # The last digits of a continuous number stand for a draw.
    drawn = (pairs.longer * 1e6) % 1.0 < probability
    weights = np.where(drawn, hajek_weights(probability), 0.0)
    return share_of(_correctness(pairs)[0] * weights, weights)


def _calibration_error(pairs: Pairs) -> Interval | None:
    return calibration_error(pairs.prob, pairs.label, pairs.prompt).error


FIGURES: dict[str, Drawn] = dict(
    {
        name: _of_figure(name, make)
        for name, make in {
            "kappa": lambda p: _whole(agree.cohen_kappa(*_sides(p)), p),
            "alpha": lambda p: _whole(agree.krippendorff_alpha(np.stack(_sides(p))), p),
            "fleiss_kappa": lambda p: _whole(agree.fleiss_kappa(np.stack(_sides(p))), p),
            "hajek": _drawn_share,
            "spearman": lambda p: _whole(agree.spearman(p.prob, p.label), p),
            "kendall": lambda p: _whole(agree.kendall(p.prob, p.label), p),
            "length_coefficient": lambda p: agreement.length_coefficient(p.prob, p.label, p.longer),
            "self_preference": lambda p: agreement.self_preference(p.prob, p.label, p.own),
            "calibration_intercept": lambda p: _line(p, 0),
            "calibration_slope": lambda p: _line(p, 1),
            "temperature": _temperature,
            "brier_scaled": _brier_scaled,
            "rewardbench/": _section,
            "difference": lambda p: mean_of(np.subtract(*_correctness(p))),
            "error_correlation": lambda p: _whole(agree.pearson(*_correctness(p)), p),
            "length_spearman": _rewards("length_spearman"),
            "reward_spread": _rewards("reward_spread"),
            "votes/ceiling": _ceiling("ceiling"),
            "votes/gap": _ceiling("gap"),
        }.items()
    },
    votes=("votes", _votes),
    calibration_error=("calibration_error", _calibration_error),
)
FIGURES["weight/"] = ("weight/", _weight)


@cache
def truth_of(name: str) -> float:
    """The figure of a population: of many prompts, and of `weight/` and others that are slow of
    fewer."""
    rng = np.random.default_rng(1)
    pairs = draw_pairs(rng, 2000 if name == "weight/" else TRUTH_PROMPTS)
    if name == "calibration_error":
        # By the probability that truly is behind the labels, in the bins of so many pairs.
        return _population_calibration()
    found = FIGURES[name][1](pairs)
    assert found is not None
    return found.mean


def _population_calibration() -> float:
    rng = np.random.default_rng(1)
    pairs = draw_pairs(rng, TRUTH_PROMPTS)
    return calibration_error(pairs.prob, pairs.label, pairs.prompt).error.mean


def pooled_figure(
    make: Drawn, draw: Draw, rng: Rng, replicates: int, prompts: int
) -> tuple[Ends, float, float | None]:
    """Intervals of `replicates` sets of pairs, the truth, and the null of the figure's p."""
    name, of = make
    columns = np.full((6, replicates), np.nan)
    for k in range(replicates):
        found = of(draw(rng, prompts))
        if found is not None and found.low is not None and found.high is not None:
            columns[:3, k] = found.mean, found.low, found.high
            columns[3, k] = np.nan if found.p is None else found.p
    null = None if name in ("votes", "calibration_error") else rule_of(name).null
    truth = 0.0 if draw is draw_nothing or name == "difference" else truth_of(name)
    return Ends(*columns), truth, null
