"""pair: combine the judges' scores and make preferences."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from rlaif.compare.aggregate import Scores, candidate_scores, combine
from rlaif.compare.metrics import rank_correlation
from rlaif.config import PairStep
from rlaif.data.pairs import (
    Candidate,
    against_reference,
    balanced,
    keep_widest,
    preference,
    prompt_pairs,
)
from rlaif.records import Completion, Judgement, Preference
from rlaif.steps.context import StepContext, by_prompt

BATCH = 1000
SPREAD_FLOOR = 0.05
"""The least spread that `standardise` divides by: a constant judge's noise must not be blown up."""


def run(context: StepContext) -> dict[str, Any]:
    """The pairs of one prompt after the other, in the order of ids; what is stored is not stored
    again. Raises ConfigError where completions are of a prompt that the experiment lacks."""
    planned, step = context.planned, context.planned.step
    if step.strategy == "reference":
        return _against_references(context)
    principle_weights = planned.options["principle_weights"]
    judgements = {
        name.split("/", 1)[1]: context.by_prompt(name, Judgement)
        for name in planned.inputs
        if name.startswith("judgements/")
    }
    weights = judge_weights(step, list(judgements))
    if step.standardise == "initial":
        initial = {judge: context.judgements(f"initial/{judge}") for judge in weights}
        weights = standardised(initial, weights, principle_weights)
    completions = context.by_prompt("completions", Completion)
    prompts = completions.prompts()
    context.refuse_strangers(prompts)
    without = {"tied_prompts": 0}
    if step.consistency is not None:
        without["unranked_prompts"] = 0

    def pairs() -> Iterator[Preference]:
        for prompt_id in prompts:
            answers = completions.of(prompt_id)
            said = {judge: given.of(prompt_id) for judge, given in judgements.items()}
            made, why_none = _of_prompt(
                context, prompt_id, answers, said, weights, principle_weights
            )
            if why_none is not None:
                without[why_none] += 1
            yield from sorted(made, key=lambda p: p.preference_id)

    count = _stored(context, _finished(pairs(), step))
    return {
        "counts": {"preferences": count, "prompts": len(prompts), **without},
        "weights": weights,
    }


def _finished(pairs: Iterable[Preference], step: PairStep) -> Iterable[Preference]:
    """The pairs that the step keeps. Only what all of them decide needs them at once."""
    if step.balance_lengths:
        pairs = balanced(pairs)
    if step.max_pairs is not None:
        pairs = keep_widest(pairs, step.max_pairs)
    if not step.consistency_mean:
        return pairs
    kept = list(pairs)
    mean = statistics.fmean(p.prob for p in kept) if kept else 0.0
    return [replace(p, prob=mean) for p in kept]


def _stored(context: StepContext, pairs: Iterable[Preference]) -> int:
    """Store the pairs that are not there yet, batch by batch, and count them all."""
    count, done = 0, context.folder.count("preferences")
    batch: list[Preference] = []
    for count, pair in enumerate(pairs, 1):
        if count > done:
            batch.append(pair)
        if len(batch) == BATCH:
            context.folder.append("preferences", batch)
            batch = []
    context.folder.append("preferences", batch)
    return count


def _against_references(context: StepContext) -> dict[str, Any]:
    groups = by_prompt(context.completions())
    context.refuse_strangers(groups)
    number, limit = context.planned.round, context.planned.step.max_pairs
    made = [
        pair
        for prompt_id in sorted(groups)
        for pair in sorted(
            against_reference(context.prompts[prompt_id], groups[prompt_id], number),
            key=lambda pair: pair.preference_id,
        )
    ]
    count = _stored(context, keep_widest(made, limit) if limit is not None else made)
    without = sum(not context.prompts[p].reference for p in groups)
    counts = {"preferences": count, "prompts": len(groups), "without_reference": without}
    return {"counts": counts}


def judge_weights(step: PairStep, judges: Iterable[str]) -> dict[str, float]:
    """The declared weights, or 1 for every judge but the one of `consistency`."""
    if step.weights is not None:
        return dict(step.weights)
    return {judge: 1.0 for judge in judges if judge != step.consistency}


def consistency_prob(scores: Scores, others: Scores) -> float | None:
    """CREAM's C = (tau + 1) / 2 on [0, 1] (arXiv 2410.12735), tau being Kendall's rank correlation
    of two sets of scores of one prompt's candidates; None where they rank no two candidates.

    As a pair's `prob`, 1 leaves the loss as it is, at 1/2 it pulls to no side, 0 reverses the pair.
    """
    both = [
        (score, other)
        for name, score in scores.items()
        if score is not None and (other := others.get(name)) is not None
    ]
    tau = rank_correlation([score for score, _ in both], [other for _, other in both])
    return None if tau is None else (tau + 1.0) / 2.0


def group_by_prompt(judgements: Iterable[Judgement]) -> dict[str, list[Judgement]]:
    """Judgements by prompt id."""
    groups: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        groups[judgement.prompt_id].append(judgement)
    return groups


def score_prompt(
    judgements: Mapping[str, list[Judgement]],
    principle_weights: Mapping[str, float],
    step: PairStep,
) -> dict[str, Scores]:
    """Each judge's scores of one prompt's candidates."""
    renormalise = step.missing == "renormalise"
    return {
        judge: candidate_scores(rows, principle_weights, renormalise)
        for judge, rows in judgements.items()
    }


def _of_prompt(
    context: StepContext,
    prompt_id: str,
    completions: list[Any],
    judgements: Mapping[str, list[Judgement]],
    weights: Mapping[str, float],
    principle_weights: Mapping[str, float],
) -> tuple[list[Preference], str | None]:
    """The prompt's preferences, and the count that it belongs to when equal ranks left none."""
    step = context.planned.step
    parts = score_prompt(judgements, principle_weights, step)
    combined = combine(parts, weights, step.missing)
    scored = [
        Candidate(c, score)
        for c in completions
        if (score := combined.get(c.completion_id)) is not None
    ]
    prompt = context.prompts[prompt_id]
    pairs = prompt_pairs(prompt, scored, step, context.planned.seed)
    ids: dict[str, list[str]] = defaultdict(list)
    for rows in judgements.values():
        for judgement in rows:
            for shown in judgement.shown:
                ids[shown].append(judgement.judgement_id)
    number = context.planned.round
    made = [preference(prompt, pair, step, number, ids, parts) for pair in pairs]
    if len(scored) > 1 and len({c.score for c in scored}) == 1:
        return made, "tied_prompts"
    if step.consistency is None or not made:
        return made, None
    prob = consistency_prob(combined, parts[step.consistency])
    if prob is None:
        return [], "unranked_prompts"
    return [replace(p, prob=prob) for p in made], None


def standardised(
    initial: Mapping[str, Iterable[Judgement]],
    weights: Mapping[str, float],
    principle_weights: Mapping[str, float],
) -> dict[str, float]:
    """Weights divided by each judge's spread on M0's samples (`initial`), rescaled to the same sum.

    Dividing the weight instead of the score keeps the combined score on [0, 1].
    """
    scaled = {}
    for judge, weight in weights.items():
        groups = group_by_prompt(initial[judge])
        values = [
            score
            for rows in groups.values()
            for score in candidate_scores(rows, principle_weights, True).values()
            if score is not None
        ]
        spread = statistics.pstdev(values) if len(values) > 1 else 0.0
        scaled[judge] = weight / max(spread, SPREAD_FLOOR)
    total, wanted = sum(scaled.values()), sum(weights.values())
    return {judge: weight * wanted / total for judge, weight in scaled.items()}
