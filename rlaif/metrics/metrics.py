"""Per-prompt values of every metric of a set of answers. Pure functions.

A value is one number per prompt (the mean over that prompt's samples), or for what is counted how
many of how many; a prompt without a value is absent, never 0.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any

from rlaif.config.steps import CheckSpec
from rlaif.constitution import textstats
from rlaif.constitution.rules import apply_check
from rlaif.core.groups import group_by
from rlaif.core.records import VALUED, Completion, Judgement, Prompt
from rlaif.engines.base import DISTANCE, SPREAD
from rlaif.metrics.figure_rules import rule_of
from rlaif.metrics.intervals import (
    Interval,
    factor_interval,
    mean_interval,
    paired_interval,
    paired_share_interval,
    rare_share_interval,
    share_interval,
    skewed_interval,
    win_rate_interval,
)
from rlaif.preferences.aggregate import candidate_scores, pair_probability, weights_of

Values = dict[str, float]
"""Prompt id to value."""
Counts = dict[str, tuple[int, int]]
"""Prompt id to how many of its items are counted, of how many."""
Measured = Values | Counts

TEXT_METRICS: dict[str, Callable[[str], float | None]] = {
    "length/words": lambda text: float(len(textstats.words(text))),
    "distinct_2": lambda text: textstats.distinct_n(text, 2),
    "repetition_4": lambda text: textstats.repetition(text, 4),
}
TEXT_COUNTS: dict[str, Callable[[str], bool]] = {
    "refusal_rate": textstats.is_refusal,
    "stock_phrase_rate": lambda text: bool(textstats.stock_phrases(text)),
    "list_rate": textstats.has_list,
    "empty_rate": lambda text: not text.strip(),
}


def per_prompt(items: Iterable[tuple[str, float | None]]) -> Values:
    """The mean of the values of each prompt; None is missing."""
    groups: dict[str, list[float]] = defaultdict(list)
    for prompt_id, value in items:
        if value is not None and math.isfinite(value):
            groups[prompt_id].append(value)
    return {prompt_id: fmean(values) for prompt_id, values in sorted(groups.items())}


def counts_per_prompt(items: Iterable[tuple[str, bool]]) -> Counts:
    """How many of each prompt's items are true, of how many."""
    groups = group_by(items, lambda item: item[0])
    return {name: (sum(v for _, v in row), len(row)) for name, row in sorted(groups.items())}


def to_shares(measured: Measured) -> Values:
    """The values, with a share in place of what is counted."""
    return {
        prompt_id: value[0] / value[1] if isinstance(value, tuple) else value
        for prompt_id, value in measured.items()
    }


def text_values(
    completions: Sequence[Completion], prompts: Mapping[str, Prompt], checks: Sequence[CheckSpec]
) -> dict[str, Measured]:
    """Length, diversity, refusals, format, and the declared `checks` that no judge trains on."""
    made = [c for c in completions if c.finish_reason != "failed"]
    found: dict[str, Measured] = {
        name: per_prompt((c.prompt_id, measure(c.own_text)) for c in made)
        for name, measure in TEXT_METRICS.items()
    }
    for name, counted in TEXT_COUNTS.items():
        found[name] = counts_per_prompt((c.prompt_id, counted(c.own_text)) for c in made)
    found["length/tokens"] = per_prompt(
        (c.prompt_id, None if c.token_ids is None else float(len(c.token_ids))) for c in made
    )
    found["truncated_rate"] = counts_per_prompt(
        (c.prompt_id, c.finish_reason == "length") for c in made
    )
    for check in checks:
        found[f"check/{check.id}"] = per_prompt(
            (c.prompt_id, apply_check(check.rule, check.params, prompts[c.prompt_id], c.text))
            for c in made
        )
    return found


def likelihood_values(
    completions: Sequence[Completion], under_initial: Sequence[Mapping[str, Any]]
) -> dict[str, Values]:
    """KL from M0 (k1 estimate, nats per answer and per token), the answers' mean token log-prob
    under M0, and the policy's entropy as the mean negative log-prob of its own tokens.

    The policy's own log-probs are at temperature 1 and were recorded when it sampled.
    """
    rows = {r["completion_id"]: r for r in under_initial if r["logprob"] is not None}
    triples = []
    for completion in completions:
        row = rows.get(completion.completion_id)
        if row is None or not row["tokens"] or completion.logprobs is None:
            continue
        own = math.fsum(completion.logprobs)
        triples.append((completion.prompt_id, own, float(row["logprob"]), int(row["tokens"])))
    return {
        "kl/initial": per_prompt((p, own - base) for p, own, base, _ in triples),
        "kl_per_token/initial": per_prompt((p, (own - base) / n) for p, own, base, n in triples),
        "loglik/initial": per_prompt((p, base / n) for p, _, base, n in triples),
        "entropy": per_prompt((p, -own / n) for p, own, _, n in triples),
    }


def judge_values(
    judge: str, judgements: Sequence[Judgement], weights: Mapping[str, float], subjects: set[str]
) -> dict[str, Measured]:
    """A pointwise judge's scores, in all and by principle, and how its answers were read."""
    mine = [j for j in judgements if j.subject in subjects]
    groups = group_by(mine, lambda j: j.prompt_id)
    scores = [
        (prompt_id, score)
        for prompt_id, rows in groups.items()
        for score in candidate_scores(rows, weights_of(judge, weights), renormalise=True).values()
    ]
    found: dict[str, Measured] = {f"score/{judge}": per_prompt(scores)}
    for principle in sorted({j.principle for j in mine if j.principle is not None}):
        found[f"score/{judge}/{principle}"] = per_prompt(
            (j.prompt_id, j.score) for j in mine if j.principle == principle
        )
    found[f"not_applicable_rate/{judge}"] = counts_per_prompt(
        (j.prompt_id, j.status == "not_applicable") for j in mine
    )
    return found | read_values(judge, mine)


UNFAMILIAR = {DISTANCE: "distance", SPREAD: "disagreement"}
"""The metrics of how unfamiliar an answer is to a reward model, by the part of its reward."""


def measure_unfamiliarity(judgement: Judgement) -> dict[str, float]:
    """By metric, how unfamiliar a reward model is with the judged answer: its distance from the
    training features, and the standard deviation over an ensemble's members. Empty for other
    judges."""
    known = judgement.distribution or {}
    if "reward" not in known:
        return {}
    return {
        f"{metric}/{judgement.judge}": known[part]
        for part, metric in UNFAMILIAR.items()
        if part in known
    }


def unfamiliar_values(judgements: Sequence[Judgement]) -> dict[str, Values]:
    """`measure_unfamiliarity` of the answers to each prompt."""
    rows = [(j.prompt_id, measure_unfamiliarity(j)) for j in judgements]
    names = sorted({name for _, found in rows for name in found})
    return {n: per_prompt((p, found.get(n)) for p, found in rows) for n in names}


def read_values(judge: str, judgements: Sequence[Judgement]) -> dict[str, Measured]:
    """The label mass, the share of answers that could not be read, and what `unfamiliar_values`
    finds."""
    found: dict[str, Measured] = {**unfamiliar_values(judgements)}
    masses = per_prompt((j.prompt_id, j.label_mass) for j in judgements)
    if masses:
        found[f"label_mass/{judge}"] = masses
    asked = [j for j in judgements if j.status != "not_applicable" and j.annotator_kind != "rule"]
    if asked:
        found[f"unparsed_rate/{judge}"] = counts_per_prompt(
            (j.prompt_id, j.status in ("unparsed", "failed")) for j in asked
        )
    return found


def pairwise_values(
    judge: str, judgements: Sequence[Judgement], completions: set[str]
) -> dict[str, Measured]:
    """A comparative judge's win rate of `completions` over the others, both orders averaged, and
    how often the same slot wins in both orders."""
    pairs: dict[tuple[str, str, str], list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        first, second = sorted(judgement.shown)
        if (first in completions) != (second in completions):
            pairs[judgement.prompt_id, first, second].append(judgement)
    wins, same_slot = [], []
    for (prompt_id, first, second), rows in pairs.items():
        mine = first if first in completions else second
        wins.append((prompt_id, pair_probability(rows, mine)))
        firsts = {
            j.shown[0]: j.prob_first
            for j in rows
            if j.status in VALUED and j.prob_first is not None and j.prob_first != 0.5
        }
        if len(firsts) == 2:
            slots = [prob > 0.5 for prob in firsts.values()]
            same_slot.append((prompt_id, slots[0] == slots[1]))
    found: dict[str, Measured] = {f"win_rate_vs_initial/{judge}": per_prompt(wins)}
    if same_slot:
        found[f"position_bias/{judge}"] = counts_per_prompt(same_slot)
    return found | read_values(judge, judgements)


def sample_values(judge: str, scores: Mapping[str, Sequence[float]]) -> dict[str, Values]:
    """How far a judge tells the candidates of one prompt apart (standard deviation)."""
    spread = {p: pstdev(v) for p, v in sorted(scores.items()) if len(v) > 1}
    return {f"samples/spread/{judge}": spread}


def compute_intervals(measured: Mapping[str, Measured]) -> dict[str, Any]:
    """{metric: its interval as JSON}; a metric without any value is left out."""
    found = {name: value_interval(name, values) for name, values in measured.items() if values}
    return {name: i.to_json() for name, i in sorted(found.items()) if i is not None}


def value_interval(name: str, measured: Measured) -> Interval | None:
    """A metric's mean over prompts, with its interval by the rule of its name; None without a
    prompt."""
    rule = rule_of(name)
    if rule.of == "rare":
        return rare_share_interval({p: _as_count(value) for p, value in measured.items()})
    values = to_shares(measured)
    if rule.of == "share":
        return share_interval(values, rule.null)
    return skewed_interval(values) if rule.of == "skewed" else mean_interval(values, rule.null)


def _as_count(value: float | tuple[int, int]) -> tuple[int, int]:
    if isinstance(value, tuple):
        return value
    if value not in (0.0, 1.0):
        raise ValueError(f"0, 1 or a count expected, got {value}")
    return int(value), 1


FACTORS = ("length/words", "length/tokens")
"""Metrics whose change is also a factor: `length_factor/words` ..."""


def compute_differences(new: Mapping[str, Measured], old: Mapping[str, Measured]) -> dict[str, Any]:
    """{metric: paired difference with its interval}, over the prompts that both have; with the win
    rate of every judge that scores, and the factor by which lengths have grown."""
    found: dict[str, Interval | None] = {}
    for name in sorted(set(new) & set(old)):
        one, other = to_shares(new[name]), to_shares(old[name])
        found[name] = change_interval(name, one, other)
        if scores_answers(name):
            found[f"win_rate/{name.split('/')[1]}"] = win_rate_interval(one, other)
        if name in FACTORS:
            found[f"length_factor/{name.split('/')[1]}"] = factor_interval(one, other)
    return {name: i.to_json() for name, i in sorted(found.items()) if i is not None}


def scores_answers(name: str) -> bool:
    """Whether a metric is a judge's score over all principles."""
    return name.startswith("score/") and name.count("/") == 1


def change_interval(name: str, new: Values, old: Values) -> Interval | None:
    """The mean of new - old over the prompts that both have, by the rule of the metric's name."""
    both = sorted(new.keys() & old.keys())
    if not both:
        return None
    binary = {side[p] for p in both for side in (new, old)} <= {0.0, 1.0}
    rate = rule_of(name).change == "rate" and binary
    found = paired_share_interval(new, old) if rate else paired_interval(new, old)
    return None if found is None else replace(found, old=fmean(old[p] for p in both))
