"""Ways of making data whose true figure is known, for many replicates at once.

Each takes a generator, B replicates and C prompts, and gives arrays (B, C) with the truth.
"clusters" are several items to a prompt that share its difficulty, averaged per prompt or as
counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import special

Array = np.ndarray
Rng = np.random.Generator
REAL = Path(__file__).with_name("values.json")
"""Values by prompt of a stored run, {metric: [[M0's], [the last model's]]}, which
`claims.py RUN --store` writes here; without the file nothing is tried on them."""

LEVELS = np.asarray([0.0, 0.25, 0.5, 0.75, 1.0])
LEVEL_ODDS = np.asarray([0.05, 0.1, 0.2, 0.3, 0.35])


def _of(values: Array, odds: Array) -> Callable[[Rng, int, int], tuple[Array, float]]:
    truth = float(values @ odds)
    return lambda rng, b, c: (rng.choice(values, (b, c), p=odds), truth)


def _ones(share: float) -> Callable[[Rng, int, int], tuple[Array, float]]:
    return lambda rng, b, c: ((rng.random((b, c)) < share).astype(float), share)


def cluster_sizes(rng: Rng, shape: tuple[int, ...]) -> Array:
    """Items to a prompt: mostly one to three, sometimes nine."""
    return rng.choice([1, 2, 3, 9], shape, p=[0.4, 0.3, 0.2, 0.1])


def clustered_counts(
    rng: Rng, b: int, c: int, share: float, within: float = 0.3
) -> tuple[Array, Array, float]:
    """Counts and sizes of items whose chance differs by prompt (beta-binomial with this
    correlation within a prompt)."""
    sizes = cluster_sizes(rng, (b, c))
    chance = rng.beta(share * (1 / within - 1), (1 - share) * (1 / within - 1), (b, c))
    return rng.binomial(sizes, chance).astype(float), sizes.astype(float), share


def _clustered_means(rng: Rng, b: int, c: int) -> tuple[Array, float]:
    """Prompts' means of four levels of score, one to nine of them, with a shared difficulty."""
    sizes = cluster_sizes(rng, (b, c))
    chance = rng.beta(6, 3, (b, c))
    return rng.binomial(4 * sizes, chance) / (4 * sizes), 6 / 9


def _dominated_scores(rng: Rng, b: int, c: int) -> tuple[Array, float]:
    """Nearly all prompts at one score, a few far away: mostly one of a sample."""
    far = rng.random((b, c)) < 0.1
    return np.where(far, 0.1, 0.8), 0.73


def _real(name: str, side: int) -> Callable[[Rng, int, int], tuple[Array, float]]:
    def drawn(rng: Rng, b: int, c: int) -> tuple[Array, float]:
        values = np.asarray(json.loads(REAL.read_text(encoding="utf-8"))[name][side])
        return rng.choice(values, (b, c)), float(values.mean())

    return drawn


SHARES: dict[str, Callable[[Rng, int, int], tuple[Array, float]]] = {
    "uniform": lambda rng, b, c: (rng.random((b, c)), 0.5),
    "five levels": _of(LEVELS, LEVEL_ODDS),
    "wins with ties": _of(np.asarray([0, 0.5, 1]), np.asarray([0.3, 0.4, 0.3])),
    "0/1, half": _ones(0.5),
    "0/1, 0.8": _ones(0.8),
    "0/1, 0.95": _ones(0.95),
    "0/1, 0.01": _ones(0.01),
    "all equal": lambda rng, b, c: (np.full((b, c), 0.7), 0.7),
    "one prompt dominates": _dominated_scores,
    "clusters": _clustered_means,
    **({"real scores": _real("score/checks", 1)} if REAL.exists() else {}),
}
RARE: dict[str, Callable[[Rng, int, int], tuple[Array, Array, float]]] = {
    **{
        f"one item, {share}": lambda rng, b, c, p=share: (
            (rng.random((b, c)) < p).astype(float),
            np.ones((b, c)),
            p,
        )
        for share in (0.01, 0.05, 0.3, 0.97)
    },
    **{
        f"clusters, {share}": lambda rng, b, c, p=share: clustered_counts(rng, b, c, p)
        for share in (0.01, 0.05, 0.3, 0.97)
    },
}


def _normal(rng: Rng, b: int, c: int) -> tuple[Array, float, float]:
    return rng.normal(0.0, 0.25, (b, c)), 0.0, 1.0


def _planted(rng: Rng, b: int, c: int) -> tuple[Array, float, float]:
    return rng.normal(0.1, 0.25, (b, c)), 0.1, 1.0


def _level_differences(rng: Rng, b: int, c: int) -> tuple[Array, float, float]:
    new, old = (rng.choice(LEVELS, (b, c), p=LEVEL_ODDS) for _ in range(2))
    return new - old, 0.0, 1 - float(LEVEL_ODDS @ LEVEL_ODDS)


def _ties(rng: Rng, b: int, c: int) -> tuple[Array, float, float]:
    return rng.choice([-0.5, 0.0, 0.5], (b, c), p=[0.15, 0.7, 0.15]), 0.0, 0.3


def _hardly_any(rng: Rng, b: int, c: int) -> tuple[Array, float, float]:
    return rng.choice([-1.0, 0.0, 1.0], (b, c), p=[0.005, 0.99, 0.005]), 0.0, 0.01


def _dominated(rng: Rng, b: int, c: int) -> tuple[Array, float, float]:
    far = rng.random((b, c)) < 1 / c
    return np.where(far, rng.normal(0, 2, (b, c)), rng.normal(0, 0.1, (b, c))), 0.0, 1.0


def _cluster_differences(rng: Rng, b: int, c: int) -> tuple[Array, float, float]:
    """Means of one to nine items: prompts with one vary more than those with nine."""
    sizes = cluster_sizes(rng, (b, c))
    return rng.normal(0, 0.1, (b, c)) + rng.normal(0, 0.3, (b, c)) / np.sqrt(sizes), 0.0, 1.0


def _real_differences(rng: Rng, b: int, c: int) -> tuple[Array, float, float]:
    """Of a stored run, with signs drawn: no prompt is truly better."""
    old, new = np.asarray(json.loads(REAL.read_text(encoding="utf-8"))["score/checks"])
    away = rng.choice(new - old, (b, c)) * rng.choice([-1.0, 1.0], (b, c))
    return away, 0.0, float((new != old).mean())


DIFFERENCES: dict[str, Callable[[Rng, int, int], tuple[Array, float, float]]] = {
    "normal": _normal,
    "normal, 0.4 sd planted": _planted,
    "five levels": _level_differences,
    "ties": _ties,
    "hardly any differ": _hardly_any,
    "all equal": lambda rng, b, c: (np.zeros((b, c)), 0.0, 0.0),
    "one prompt dominates": _dominated,
    "clusters": _cluster_differences,
    "lengths, on log scale": lambda rng, b, c: (rng.normal(0.05, 0.5, (b, c)), 0.05, 1.0),
    **({"real differences": _real_differences} if REAL.exists() else {}),
}


def _twos(old: float, new: float, tied: float) -> Callable[[Rng, int, int], tuple[Array, ...]]:
    """0/1 values of a prompt under two models, with this normal correlation."""

    def drawn(rng: Rng, b: int, c: int) -> tuple[Array, Array, float]:
        shared = rng.normal(size=(b, c))
        first, second = (
            (special.ndtr(tied**0.5 * shared + (1 - tied) ** 0.5 * rng.normal(size=(b, c))) < p)
            for p in (new, old)
        )
        return first.astype(float), second.astype(float), new - old

    return drawn


TWOS = {
    "no change at 0.5": _twos(0.5, 0.5, 0.3),
    "no change at 0.1": _twos(0.1, 0.1, 0.5),
    "no change at 0.01": _twos(0.01, 0.01, 0.0),
    "0.7 to 0.4": _twos(0.7, 0.4, 0.5),
    "0.3 to 0.05": _twos(0.3, 0.05, 0.5),
}


def _skewed_clusters(rng: Rng, b: int, c: int) -> tuple[Array, float]:
    sizes = cluster_sizes(rng, (b, c))
    return rng.gamma(sizes, 1.0 / sizes), 1.0


SKEWED: dict[str, Callable[[Rng, int, int], tuple[Array, float]]] = {
    "exponential": lambda rng, b, c: (rng.exponential(size=(b, c)), 1.0),
    "lognormal(0.5)": lambda rng, b, c: (rng.lognormal(0, 0.5, (b, c)), float(np.exp(0.125))),
    "lognormal(1)": lambda rng, b, c: (rng.lognormal(0, 1, (b, c)), float(np.exp(0.5))),
    "normal": lambda rng, b, c: (rng.normal(3, 1, (b, c)), 3.0),
    "clusters": _skewed_clusters,
    **({"real KL": _real("kl/initial", 1)} if REAL.exists() else {}),
    **({"real lengths": _real("length/words", 1)} if REAL.exists() else {}),
}


def _crossed(seed: float, prompt: float, cell: float, seeds: int) -> Callable[..., object]:
    def drawn(rng: Rng, b: int, c: int) -> tuple[Array, float]:
        table = rng.normal(0, seed, (b, seeds, 1)) + rng.normal(0, prompt, (b, 1, c))
        return table + rng.normal(0, cell, (b, seeds, c)), 0.0

    return drawn


SEEDS = {
    "3 seeds, prompts differ": _crossed(0.02, 0.2, 0.2, 3),
    "5 seeds, both differ": _crossed(0.1, 0.2, 0.2, 5),
    "5 seeds, seeds differ": _crossed(0.2, 0.05, 0.1, 5),
    "10 seeds, noise alone": _crossed(0.0, 0.0, 0.3, 10),
}
