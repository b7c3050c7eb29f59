"""How far two sources agree on the pairs that both decided, in all and by part of the pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from rlaif.analysis.comparison.pairs import Compared, Source
from rlaif.metrics.intervals import MIN_PROMPTS
from rlaif.metrics.judge_figures import agreement_figures
from rlaif.metrics.pooled import figure_intervals
from rlaif.preferences.labels import Verdicts

SHOWN = ("agreement", "agreement_half", "agreement_three_way", "kappa", "alpha")
BY_PART = ("agreement", "agreement_half", "agreement_three_way")
MOST_PARTS = 12
"""Of more parts of one kind, the largest."""
LENGTH_RATIOS = ((1.25, "within 1.25 times"), (2.0, "1.25 to 2 times"), (np.inf, "beyond 2 times"))
MARGINS = ((0.2, "below 0.2"), (0.5, "0.2 to 0.5"), (0.9, "0.5 to 0.9"), (np.inf, "0.9 or more"))
"""Upper ends of the bins, and what they are called."""


def agreement_rows(compared: Compared) -> list[dict[str, Any]]:
    """A row for every two sources with a pair in common: coverage, figures and parts as JSON."""
    rows = []
    for first, second in combinations(compared.sources, 2):
        names = [n for n in compared.pairs if n in first.probs and n in second.probs]
        if names:
            rows.append(_agreement_row(compared, first, second, names))
    return rows


def _agreement_row(
    compared: Compared, first: Source, second: Source, names: Sequence[str]
) -> dict[str, Any]:
    either = first.asked | second.asked
    parts = {
        kind: _part_rows(compared, first, second, by_name)
        for kind, by_name in _list_parts(compared, second, names).items()
    }
    parts["principle"] = _principle_rows(compared, first, second)
    return {
        "first": first.name,
        "second": second.name,
        "pairs": len(names),
        "prompts": len({compared.pairs[name].prompt_id for name in names}),
        "of": len(either),
        "figures": agreement_of(compared, first.probs, second.probs, names, SHOWN),
        "parts": {kind: rows for kind, rows in parts.items() if len(rows) > 1},
    }


def agreement_of(
    compared: Compared,
    first: Verdicts,
    second: Verdicts,
    names: Sequence[str],
    wanted: Sequence[str],
) -> dict[str, Any]:
    """The `wanted` figures of two sources' verdicts on some pairs, as JSON."""
    label, prob = compared.column(first, names), compared.column(second, names)
    chosen = {n: f for n, f in agreement_figures(prob, label).items() if n in wanted}
    prompts = [compared.pairs[name].prompt_id for name in names]
    return {n: i.to_json() for n, i in figure_intervals(chosen, prompts).items()}


def _list_parts(
    compared: Compared, graded: Source, names: Sequence[str]
) -> dict[str, dict[str, list[str]]]:
    """By kind of part and its name, the pairs in it; a pair may be in several of a kind. The margin
    is that of the second source."""
    parts: dict[str, dict[str, list[str]]] = {
        kind: defaultdict(list) for kind in ("tag", "source", "length gap", "margin")
    }
    for name in names:
        pair = compared.pairs[name]
        for tag in set(pair.tags):
            parts["tag"][tag].append(name)
        if pair.source:
            parts["source"][pair.source].append(name)
        if pair.texts is not None:
            parts["length gap"][length_bin(pair.texts)].append(name)
        margin = abs(2 * graded.probs[name] - 1)
        parts["margin"][next(word for end, word in MARGINS if margin < end)].append(name)
    order = [word for _, word in (*LENGTH_RATIOS, *MARGINS)]
    for kind in ("length gap", "margin"):
        parts[kind] = dict(sorted(parts[kind].items(), key=lambda item: order.index(item[0])))
    return {kind: _largest_parts(own) for kind, own in parts.items()}


def length_bin(texts: tuple[str, str]) -> str:
    """How much longer the longer answer is, in characters; nothing against something is beyond."""
    short, long = sorted(len(text) for text in texts)
    ratio = 1.0 if long == 0 else np.inf if short == 0 else long / short
    return next(word for end, word in LENGTH_RATIOS if ratio <= end)


def _largest_parts(parts: Mapping[str, list[str]]) -> dict[str, list[str]]:
    chosen = sorted(parts, key=lambda name: (-len(parts[name]), name))[:MOST_PARTS]
    return {name: parts[name] for name in parts if name in chosen}


def _part_rows(
    compared: Compared, first: Source, second: Source, parts: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "pairs": len(own),
            "figures": agreement_of(compared, first.probs, second.probs, own, BY_PART),
        }
        for name, own in parts.items()
        if _count_prompts(compared, own) >= MIN_PROMPTS
    ]


def _principle_rows(compared: Compared, first: Source, second: Source) -> list[dict[str, Any]]:
    """By principle: both sources' verdicts under it where both have some, else those of one under
    it against the other's in all."""
    rows = []
    for name, one, other in _list_principles(first, second):
        both = [n for n in compared.pairs if n in one and n in other]
        if _count_prompts(compared, both) >= MIN_PROMPTS:
            figures = agreement_of(compared, one, other, both, BY_PART)
            rows.append({"name": name, "pairs": len(both), "figures": figures})
    return rows


def _list_principles(first: Source, second: Source) -> Iterator[tuple[str, Verdicts, Verdicts]]:
    for name in sorted({*first.principles, *second.principles}):
        one = first.principles.get(name, first.probs)
        other = second.principles.get(name, second.probs)
        yield name, one, other


def _count_prompts(compared: Compared, names: Sequence[str]) -> int:
    return len({compared.pairs[name].prompt_id for name in names})


def coverage_rows(compared: Compared) -> list[dict[str, Any]]:
    """Each source: who it is, and of how many pairs it was asked about how many it decided."""
    return [
        {
            "name": source.name,
            "kind": source.kind,
            "places": list(source.places),
            "asked": len(source.asked),
            "decided": len(source.probs),
            "ties": sum(prob == 0.5 for prob in source.probs.values()),
            "people": len({p for votes in source.votes.values() for p in votes}),
            "votes": sum(len(votes) for votes in source.votes.values()),
            "voted_twice": sum(len(votes) > 1 for votes in source.votes.values()),
        }
        for source in compared.sources
    ]
