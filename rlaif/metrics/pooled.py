"""Intervals of figures that are pooled over items, with prompts as the clusters.

Several seeds of one experiment have the same held-out prompts: seeds and prompts are crossed, and
both are a source of variance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rlaif.metrics import ends
from rlaif.metrics.ends import Ends
from rlaif.metrics.figure_rules import FigureRule, rule_of
from rlaif.metrics.intervals import SAME, Interval, has_variation, one_interval, skewed_note
from rlaif.metrics.weighted import Figure, Floats, Ints, compute_defined

MOST_BLOCKS = 200
"""More prompts than these are left out in as many blocks, drawn once and for all."""
_WEIGHTS_AT_ONCE = 400_000
"""What figures make of so many weights stays in a processor's cache."""
UNDEFINED = "undefined where some prompt is left out"
STEADY = "the same whichever prompt is left out"


def figure_intervals(
    figures: Mapping[str, Figure], prompts: Sequence[str], prefix: str = ""
) -> dict[str, Interval]:
    """Every figure that is defined, with its interval by the rule of its name (after `prefix`).

    `prompts` gives the prompt of each item. A figure's ends are None where its rule is `none`, and
    where it cannot be told how it varies; the note says so.
    """
    found = compute_defined(figures, len(prompts))
    codes = np.unique(np.asarray(prompts), return_inverse=True)[1].astype(np.int64)  # [items]
    made = {}
    for name, value in found.items():
        figure, rule = figures[name], rule_of(prefix + name)
        if rule.of in ("share", "rare", "mean", "skewed"):
            made[name] = _ratio_interval(figure, codes, rule)
        elif rule.of == "none":
            made[name] = Interval(value, None, None, figure.n, _count_prompts(figure, codes))
        else:
            made[name] = _jackknife_figure(figure, value, codes, rule)
    return made


def _count_prompts(figure: Figure, codes: Ints) -> int:
    return np.unique(codes if figure.rows is None else codes[figure.rows]).size


def _ratio_interval(figure: Figure, codes: Ints, rule: FigureRule) -> Interval:
    """Of a ratio of sums, from the sums of each prompt that has any of what is below."""
    if figure.parts is None:
        raise ValueError("a share or a mean needs the parts of its ratio")
    # [prompts] each: the sums over every prompt's items.
    above, below = (np.bincount(codes, part).astype(np.float64) for part in figure.parts)
    above, below = above[below > 0], below[below > 0]
    return sums_interval(above, below, rule)


def sums_interval(above: Floats, below: Floats, rule: FigureRule) -> Interval:
    """The interval of sum(above) / sum(below), each (C,) by prompt, `below` above 0."""
    prompts, items = above.size, float(below.sum())
    n = round(items)
    if rule.of == "rare":
        counted = ends.rare_ends(above[None], below[None])
        return one_interval(counted, n, prompts, count=round(float(above.sum())))
    mean = above.sum() / items
    # With as many items in each prompt these are the prompts' own means.
    values = mean + (above - mean * below) * prompts / items
    if rule.of == "share":
        center, square = ends.spread_of(values[None])
        # The linear form of a ratio may leave [0, 1] by a little.
        bounded = np.clip(center, 0.0, 1.0)
        return one_interval(ends.share_ends(bounded, square, prompts, rule.null), n, prompts)
    if rule.of == "skewed":
        found = ends.skewed_ends(values[None], null=rule.null)
        # The median of differences is most often 0, whatever their mean is.
        middle = float(np.median(above / below)) if rule.null is None else None
        return one_interval(found, n, prompts, median=middle, note=skewed_note(values))
    note = None if has_variation(values) else SAME
    return one_interval(ends.mean_ends(values[None], rule.null), n, prompts, note=note)


def left_out(prompts: int) -> Ints:
    """The block of each prompt: one each, or `MOST_BLOCKS` of them by a draw that depends on the
    number of prompts alone."""
    if prompts <= MOST_BLOCKS:
        return np.arange(prompts)
    return np.random.default_rng(0).permutation(prompts) % MOST_BLOCKS


def _jackknife_figure(figure: Figure, value: float, codes: Ints, rule: FigureRule) -> Interval:
    used = codes if figure.rows is None else codes[figure.rows]
    names = np.unique(used)
    # -1: a prompt of which the figure has no item is left out in no block.
    block = np.full(codes.max(initial=0) + 1, -1)
    block[names] = left_out(names.size)
    batches = [figure.of(w) for w in _weights_without(block[codes], min(names.size, MOST_BLOCKS))]
    return jackknife_interval(value, np.concatenate(batches), rule, figure.n, names.size)


def _weights_without(blocks: Ints, count: int) -> Iterator[Floats]:
    """(B, n) rows of ones with one block of items left out, for each of `count` blocks."""
    rows = max(1, _WEIGHTS_AT_ONCE // max(1, blocks.size))
    for start in range(0, count, rows):
        numbers = np.arange(start, min(start + rows, count))
        yield (blocks != numbers[:, None]).astype(np.float64)


def jackknife_interval(
    value: float, without: Floats, rule: FigureRule, n: int, prompts: int
) -> Interval:
    """K6: the interval of `value` from the values `without` each of G prompts or blocks, (G,)."""
    found, notes = jackknife_ends(np.asarray([value]), without[None], rule)
    few = f"fewer than {rule.few} prompts: the interval may be too narrow"
    said = notes[0] or (few if 1 < prompts < rule.few else None)
    return one_interval(found, n, prompts, note=said)


def jackknife_ends(
    values: Floats, without: Floats, rule: FigureRule
) -> tuple[Ends, list[str | None]]:
    """As `jackknife_interval`, of values (B,) and (B, G), with a note where there are no ends."""
    groups = without.shape[1]
    if groups < 2:
        nothing = np.full(values.shape, np.nan)
        none: list[str | None] = [None] * len(values)
        return Ends(values, nothing, nothing, nothing, nothing, nothing), none
    with np.errstate(divide="ignore", invalid="ignore"):
        here, there = _scale_values(values, rule), _scale_values(without, rule)
        square = ends.jackknife_square(there)
        own = np.sqrt(ends.jackknife_square(without))
    # Values that are equal but for rounding have no spread.
    size = np.abs(there).max(axis=1)
    square = np.where(square > 1e-20 * size**2, square, 0.0)
    sound = np.isfinite(here) & np.isfinite(there).all(axis=1)
    null = None if rule.null is None else float(_scale_values(np.asarray(rule.null), rule))
    mean, se = np.where(sound, here, np.nan), np.sqrt(np.where(sound, square, np.nan))
    t = ends.t_ends(mean, se, groups - 1.0, null)
    low, high = (_unscale_values(end, rule) for end in (t.low, t.high))
    notes = [
        None if good and some > 0 else STEADY if good else UNDEFINED
        for good, some in zip(sound.tolist(), square.tolist(), strict=True)
    ]
    # `se` is on the figure's own scale, and the ends are from the other one.
    return Ends(values, low, high, t.p, np.where(sound, own, np.nan), t.df), notes


def _scale_values(values: Floats, rule: FigureRule) -> Floats:
    if rule.of == "fisher":
        return np.asarray(np.arctanh(values))
    return np.asarray(np.log(values)) if rule.of == "log" else values


def _unscale_values(values: Floats, rule: FigureRule) -> Floats:
    if rule.of == "fisher":
        return np.asarray(np.tanh(values))
    return np.asarray(np.exp(values)) if rule.of == "log" else values


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
        # [1, seeds]: each seed counts as one value.
        return one_interval(ends.mean_ends(table.T, null), prompts)
    found = crossed_ends(table[None], null)
    same = not ends.find_varying(table.reshape(1, -1))[0]
    if same:
        found = found._replace(**dict.fromkeys(("low", "high", "p", "se"), np.full(1, np.nan)))
    return one_interval(found, prompts, note="the same everywhere" if same else None)


def crossed_ends(table: Floats, null: float | None = None) -> Ends:
    """The mean of (B, S, n) values of S seeds, three or more, on the same n prompts.

    The variance of a two-way layout with both factors random, and Satterthwaite's degrees of
    freedom (1946).
    """
    _, seeds, prompts = table.shape
    rows, columns = table.mean(axis=2), table.mean(axis=1)
    mean = rows.mean(axis=1)
    # What neither the seed nor the prompt explains.
    rest = table - rows[:, :, None] - columns[:, None, :] + mean[:, None, None]
    cells = max((seeds - 1) * (prompts - 1), 1)
    by_seed = rows.var(axis=1, ddof=1) / seeds
    by_prompt = columns.var(axis=1, ddof=1) / prompts if prompts > 1 else np.zeros_like(mean)
    by_cell = (rest**2).sum(axis=(1, 2)) / cells / (seeds * prompts)
    # The variances of both means hold the cells' share, so one is taken off. An estimate of that
    # may come out too small: the mean varies no less than either factor makes it.
    both = by_seed + by_prompt - by_cell
    square = np.maximum(np.maximum(by_seed, by_prompt), both)
    spread = by_seed**2 / (seeds - 1) + by_prompt**2 / max(prompts - 1, 1) + by_cell**2 / cells
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(spread > 0, both**2 / spread, 1.0)
    # No fewer degrees of freedom than the smaller factor has.
    df = np.maximum(df, max(min(seeds, prompts) - 1, 1))
    return ends.t_ends(mean, np.sqrt(square), df, null)
