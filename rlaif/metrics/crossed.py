"""Several seeds of one experiment: their held-out prompts are the same, so seeds and prompts are
crossed, and both are a source of variance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rlaif.metrics import ends
from rlaif.metrics.ends import Ends
from rlaif.metrics.intervals import Interval, one_interval
from rlaif.metrics.weighted import Floats

FEWEST_SEEDS = 3


def seeds_interval(
    by_seed: Sequence[Mapping[str, float]], null: float | None = None
) -> Interval | None:
    """The mean over seeds and prompts of one value per seed and prompt id.

    Over the prompts that all seeds have. Seeds that share none have prompts of their own: then t
    over the seeds' means. Of two seeds there is no interval: the note gives both values. None
    without a value.
    """
    given = [values for values in by_seed if values]
    if not given:
        return None
    common = sorted(set.intersection(*(set(values) for values in given)))
    if common:
        table = np.asarray([[values[name] for name in common] for values in given])
    else:
        table = np.asarray([[float(np.mean(list(values.values())))] for values in given])
    prompts = len(common) or sum(len(values) for values in given)
    if len(given) < FEWEST_SEEDS:
        means = ", ".join(f"{mean:.4g}" for mean in table.mean(axis=1))
        note = "one seed" if len(given) == 1 else f"two seeds: {means}"
        return Interval(float(table.mean()), None, None, prompts, note=note)
    if not common:
        return one_interval(ends.mean_ends(table.T, null), prompts)
    found = crossed_ends(table[None], null)
    same = not ends.vary(table.reshape(1, -1))[0]
    if same:
        found = found._replace(**dict.fromkeys(("low", "high", "p", "se"), np.full(1, np.nan)))
    return one_interval(found, prompts, note="the same everywhere" if same else None)


def crossed_ends(table: Floats, null: float | None = None, level: float = ends.LEVEL) -> Ends:
    """The mean of (B, S, n) values of S seeds, three or more, on the same n prompts.

    The variance of a two-way layout with both factors random, and Satterthwaite's degrees of
    freedom (1946).
    """
    _, seeds, prompts = table.shape
    rows, columns = table.mean(axis=2), table.mean(axis=1)
    mean = rows.mean(axis=1)
    rest = table - rows[:, :, None] - columns[:, None, :] + mean[:, None, None]
    cells = max((seeds - 1) * (prompts - 1), 1)
    by_seed = rows.var(axis=1, ddof=1) / seeds
    by_prompt = columns.var(axis=1, ddof=1) / prompts if prompts > 1 else np.zeros_like(mean)
    by_cell = (rest**2).sum(axis=(1, 2)) / cells / (seeds * prompts)
    both = by_seed + by_prompt - by_cell
    square = np.maximum(np.maximum(by_seed, by_prompt), both)
    spread = by_seed**2 / (seeds - 1) + by_prompt**2 / max(prompts - 1, 1) + by_cell**2 / cells
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(spread > 0, both**2 / spread, 1.0)
    df = np.maximum(df, max(min(seeds, prompts) - 1, 1))
    return ends.t_ends(mean, np.sqrt(square), df, null, level)
