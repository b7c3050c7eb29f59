"""What a page is about: each arm's rounds over all seeds, and what of them may be claimed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from rlaif.core.groups import group_by
from rlaif.metrics.claims import Claims, find_claims
from rlaif.metrics.figure_rules import rule_of, without_set
from rlaif.metrics.intervals import IntervalJson
from rlaif.metrics.metrics import FACTORS, scores_answers
from rlaif.metrics.pooled import seeds_interval
from rlaif.report.view import RoundResult, RoundRow, Values, ValuesOf

TESTED_ALONE = ("win_rate_vs_initial/", "reward_accuracy/", "drift/", "judge_corr/")
"""Metrics that are themselves comparisons: they are read against a value, not against M0's."""


@dataclass(frozen=True, slots=True)
class Page:
    """`rounds` and `comparisons` have one row for each arm and round, over all seeds; those of the
    last round say under `standing` what may be claimed. `latest` are the arms' last rounds, where
    each seed adds its own last one."""

    rounds: list[RoundRow]
    latest: list[RoundRow]
    comparisons: list[dict[str, Any]]
    primary: list[str]
    claims: Claims


def make_page(
    rounds: Sequence[RoundRow],
    comparisons: Sequence[dict[str, Any]],
    values: ValuesOf,
    named: Sequence[str] | None,
    trained: Sequence[str],
) -> Page:
    """The page of all rounds, over the primary metrics that are `named`; where None, the score and
    the win rate of the `trained` judges, whose verdicts a policy was trained on."""
    in_order = sorted(rounds, key=lambda r: r["round"])
    grouped = group_by(in_order, lambda r: (r["arm"], r["round"]))
    merged = {key: merge_seeds(rows, values) for key, rows in grouped.items()}
    last = {(row["arm"], row["seed"]): row for row in in_order}
    arms = list(dict.fromkeys(row["arm"] for row in rounds))
    latest = [merge_seeds([r for (a, _), r in last.items() if a == arm], values) for arm in arms]
    number = max((_point_of(row) for row in comparisons), default=0)
    newest = [row for row in comparisons if _point_of(row) == number]
    between = [_merged_comparison(newest, values)] if newest else []
    figures = _collect_figures(latest, between)
    names = primary_figures(named, trained, {name for _, name in figures})
    claims = find_claims(
        {_make_key(*at): i for at, i in figures.items() if at[1] in names},
        {_make_key(*at): i for at, i in figures.items() if _is_distinct(at, names, figures)},
    )
    for row in latest:
        row["metrics"]["standing"] = _look_up_standing(row["arm"], row["metrics"], claims)
    ordered = sorted(merged, key=lambda key: (key[1], arms.index(key[0])))
    shown = []
    for arm, place in ordered:
        end = latest[arms.index(arm)]
        is_last = place == max(n for a, n in ordered if a == arm)
        row = merged[arm, place]
        shown.append({**row, "metrics": end["metrics"]} if is_last else row)
    for comparison in between:
        comparison["standing"] = {
            two: {name: claims.standing.get(_make_key(two, name), "none") for name in deltas}
            for two, deltas in comparison["deltas"].items()
        }
    return Page(shown, latest, between, names, claims)


def primary_figures(
    named: Sequence[str] | None, trained: Sequence[str], measured: Collection[str]
) -> list[str]:
    """The primary metrics, in order; where no trained judge was measured, those of every judge."""
    if named is not None:
        return list(named)
    kinds = ("score", "win_rate", "win_rate_vs_initial")
    found = [f"{kind}/{judge}" for judge in trained for kind in kinds]
    chosen = [name for name in found if name in measured]
    return chosen or sorted(
        name for name in measured if name.count("/") == 1 and name.split("/")[0] in kinds
    )


def claim_words(page: Page) -> list[str]:
    """What the page tests, and how many of its figures chance alone would bring below 0.05."""
    words = []
    if page.primary:
        count = len(page.claims.adjusted)
        over = f"{count} {'test' if count == 1 else 'tests'}"
        words.append(
            f"Primary: {', '.join(page.primary)}. A change of one is claimed, and coloured, where "
            f"p < 0.05 by Holm over {over}."
        )
    tested = {key.partition("|")[2] for key in page.claims.standing}
    for name in page.primary:
        if page.latest and name not in tested:
            words.append(f"Primary metric {name} was not measured.")
    if page.claims.explored:
        marked = sum(s == "exploratory" for s in page.claims.standing.values())
        words.append(
            f"All else is exploratory: of {page.claims.explored} other figures {marked} stand out "
            f"by Benjamini-Hochberg at 5%. By chance alone about {page.claims.by_chance:.1f} would "
            "have p < 0.05."
        )
    return words


def _make_key(where: str, name: str) -> str:
    return f"{where}|{name}"


def _look_up_standing(arm: str, metrics: RoundResult, claims: Claims) -> dict[str, str]:
    names = {*metrics["metrics"], *metrics["deltas"].get("initial", {})}
    return {name: claims.standing.get(_make_key(arm, name), "none") for name in names}


def _collect_figures(
    latest: Sequence[RoundRow], comparisons: Sequence[dict[str, Any]]
) -> dict[tuple[str, str], IntervalJson]:
    """Every figure that the page tests, by arm (or two arms) and name."""
    found = {}
    for row in latest:
        if row["round"] == 0:
            continue
        for name, interval in row["metrics"]["metrics"].items():
            if without_set(name).startswith(TESTED_ALONE):
                found[row["arm"], name] = interval
        for name, change in row["metrics"]["deltas"].get("initial", {}).items():
            if not without_set(name).startswith(TESTED_ALONE):
                found[row["arm"], name] = change
    for comparison in comparisons:
        for two, deltas in comparison["deltas"].items():
            found |= {(two, name): change for name, change in deltas.items()}
    return found


def _is_distinct(
    at: tuple[str, str], primary: Sequence[str], figures: Mapping[tuple[str, str], IntervalJson]
) -> bool:
    """Whether a figure that is not primary is no function of others on the page."""
    where, name = at
    own = without_set(name)
    if name in primary or own.startswith(("length_factor/", "kl_per_token/", "win_rate/")):
        return False
    if own == "length/tokens":
        return (where, name.replace("/tokens", "/words")) not in figures
    if scores_answers(own):
        return not any(w == where and n.startswith(f"{name}/") for w, n in figures)
    return True


def merge_seeds(rows: Sequence[RoundRow], values: ValuesOf) -> RoundRow:
    """One arm's round in all its seeds as one row; of one seed that row. The alarms and sentences
    of several seeds are theirs alone."""
    first = rows[0]
    if len(rows) == 1:
        return {**first, "metrics": {**first["metrics"]}}
    now = [values(row["arm"], row["seed"], row["round"]) for row in rows]
    then = [values(row["arm"], row["seed"], 0) for row in rows]
    results = [row["metrics"] for row in rows]
    changes = [result["deltas"].get("initial", {}) for result in results]
    metrics: RoundResult = {
        "metrics": _merge_figures([result["metrics"] for result in results], now),
        "deltas": {"initial": _merge_figures(changes, now, then)},
    }
    for name, change in metrics["deltas"]["initial"].items():
        start = _mean_before(name, now, then)
        if start is not None:
            change["old"] = start
    number = max(row["round"] for row in rows)
    return {**first, "round": number, "metrics": metrics}


def _merge_figures(
    given: Sequence[Mapping[str, IntervalJson]],
    new: Sequence[Values],
    old: Sequence[Values] | None = None,
) -> dict[str, IntervalJson]:
    """The figures of the rows `given` over seeds, from each seed's values; changes from the `old`
    values, where there are such. Figures without a value are left out."""
    found = {}
    for name in sorted({name for row in given for name in row}):
        if old is None:
            values: list[Mapping[str, float]] = [by_metric.get(name, {}) for by_metric in new]
        else:
            values = [change_values(name, a, b) for a, b in zip(new, old, strict=True)]
        merged = _merge_seeds(name, [row.get(name) for row in given], values, old is not None)
        if merged is not None:
            found[name] = merged
    return found


def _mean_before(name: str, now: Sequence[Values], then: Sequence[Values]) -> float | None:
    """Over all seeds, the older side's mean on the prompts that both sides have in each of them;
    None for what is no difference of one figure, or has no such prompt."""
    sides = [by_seed.get(name, {}) for by_seed in (*now, *then)]
    both = sorted(set[str](sides[0]).intersection(*sides[1:]))
    return fmean(v[name][p] for v in then for p in both) if both else None


def change_values(name: str, new: Values, old: Values) -> dict[str, float]:
    """By prompt, how much a figure of changes is: a difference, who wins, or a log ratio."""
    prefix = name.removesuffix(without_set(name))
    head, _, tail = without_set(name).partition("/")
    source = {"win_rate": f"score/{tail}", "length_factor": f"length/{tail}"}.get(head)
    source = without_set(name) if source is None else source
    is_factor = source in FACTORS and head == "length_factor"
    source = f"{prefix}{source}"
    one, other = new.get(source, {}), old.get(source, {})
    both = [p for p in one if p in other]
    if head == "win_rate":
        return {p: 0.5 + 0.5 * ((one[p] > other[p]) - (one[p] < other[p])) for p in both}
    if is_factor:
        return {p: math.log(one[p] / other[p]) for p in both if one[p] > 0 and other[p] > 0}
    return {p: one[p] - other[p] for p in both}


def _merge_seeds(
    name: str,
    given: Sequence[IntervalJson | None],
    values: Sequence[Mapping[str, float]],
    change: bool,
) -> IntervalJson | None:
    """One figure over seeds: crossed where the values are stored, else the seeds' mean alone."""
    seeds = [interval for interval in given if interval is not None]
    if not seeds:
        return None
    if change:
        null: float | None = 0.5 if without_set(name).startswith("win_rate/") else 0.0
    else:
        null = rule_of(name).null
    found = seeds_interval(values, null) if all(values) else None
    if found is None:
        mean = sum(i["mean"] for i in seeds) / len(seeds)
        note = "run the experiment again for its interval over seeds"
        return {"mean": mean, "low": None, "high": None, "n": seeds[0]["n"], "note": note}
    row = found.to_json()
    if without_set(name).startswith("length_factor/"):
        row["mean"] = math.exp(row["mean"])
        row["low"], row["high"] = (
            None if end is None else math.exp(end) for end in (row["low"], row["high"])
        )
    return row


def _point_of(row: Mapping[str, Any]) -> int:
    """The place of a comparison among the evaluations."""
    return int(row.get("point", row["round"]))


def _merged_comparison(rows: Sequence[dict[str, Any]], values: ValuesOf) -> dict[str, Any]:
    """The comparisons of one round in all seeds as one row."""
    first = rows[0]
    if len(rows) == 1:
        return dict(first)
    deltas, labels = {}, {}
    for one, other in combinations(first["arms"], 2):
        two = f"{one}/{other}"
        old, new = (
            [values(arm, row["seed"], _point_of(row)) for row in rows] for arm in (one, other)
        )
        deltas[two] = _merge_figures([row["deltas"].get(two, {}) for row in rows], new, old)
        found = [row["labels"].get(two, {}) for row in rows]
        keys = sorted({key for figures in found for key in figures})
        labels[two] = {key: _same_labels([f[key] for f in found if key in f]) for key in keys}
    return {**first, "labels": labels, "deltas": deltas}


def _same_labels(given: Sequence[IntervalJson]) -> IntervalJson:
    """A figure of labels: seeds mostly train on the same ones. Else the mean, without ends."""
    if all(interval == given[0] for interval in given):
        return given[0]
    mean = sum(interval["mean"] for interval in given) / len(given)
    shown = ", ".join(f"{interval['mean']:.3g}" for interval in given)
    note = f"by seed: {shown}"
    return {"mean": mean, "low": None, "high": None, "n": given[0]["n"], "note": note}
