"""pair: combine the judges' scores and make preferences.

Where there are no pairs it says why, as far as finished steps tell.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from rlaif.config.steps import PairStep
from rlaif.core.records import Completion, Judgement, Preference
from rlaif.core.rowfiles import line_of, record_of
from rlaif.core.store import Store
from rlaif.core.workers import count_workers, in_order
from rlaif.pipeline.plan import Planned
from rlaif.pipeline.steps.context import StepContext, by_prompt
from rlaif.preferences.aggregate import candidate_scores
from rlaif.preferences.pairing import PairSettings, Work, pairs_of
from rlaif.preferences.strategies import against_reference, balance_lengths, keep_widest

BATCH = 1000
AT_ONCE = 1000
"""Prompts whose pairs are made at once."""
ALONE = 16_000
"""Pairs of so few prompts are made before other processes have started."""
SPREAD_FLOOR = 0.05
"""The least spread that `standardise` divides by: a constant judge's noise must not be blown up."""


def run(context: StepContext) -> dict[str, Any]:
    """The pairs of one prompt after the other, in the order of ids; what is stored is not stored
    again. Raises ConfigError where completions are of a prompt that the experiment lacks."""
    step = context.planned.step
    if step.strategy == "reference":
        return _against_references(context)
    settings = _settings(context)
    counts = {"preferences": 0, "prompts": 0, "tied_prompts": 0}
    if step.consistency is not None:
        counts["unranked_prompts"] = 0

    def lines() -> Iterator[bytes]:
        workers = count_workers() if len(context.prompts) > ALONE else 1
        for made, found in in_order(pairs_of, _works(context, settings), workers):
            for name, count in found.items():
                counts[name] += count
            yield from made

    counts["preferences"] = _stored(context, _finished(lines(), step))
    return {"counts": counts, "weights": settings.weights}


def _judged(planned: Planned) -> dict[str, str]:
    """Judge to the name of its judgements among the inputs."""
    return {n.split("/", 1)[1]: n for n in planned.inputs if n.startswith("judgements/")}


def _settings(context: StepContext) -> PairSettings:
    planned, step = context.planned, context.planned.step
    principle_weights = planned.options["principle_weights"]
    weights = judge_weights(step, _judged(planned))
    if step.standardise == "initial":
        initial = {judge: context.judgements(f"initial/{judge}") for judge in weights}
        weights = standardised(initial, weights, principle_weights)
    return PairSettings(step, planned.seed, planned.round, weights, principle_weights)


def _works(context: StepContext, settings: PairSettings) -> Iterator[Work]:
    """The prompts that have completions, in the order of ids, some at a time."""
    inputs = _judged(context.planned)
    judgements = {judge: context.by_prompt(name, Judgement) for judge, name in inputs.items()}
    completions = context.by_prompt("completions", Completion)
    prompts = completions.prompts()
    context.refuse_strangers(prompts)
    for start in range(0, len(prompts), AT_ONCE):
        ids = prompts[start : start + AT_ONCE]
        yield Work(
            settings,
            [context.prompts[p] for p in ids],
            completions.parts(ids),
            {judge: given.parts(ids) for judge, given in judgements.items()},
        )


def _finished(lines: Iterable[bytes], step: PairStep) -> Iterable[bytes]:
    """The pairs that the step keeps. Only what all of them decide needs them as records."""
    if not (step.balance_lengths or step.max_pairs or step.consistency_mean):
        return lines
    pairs: Iterable[Preference] = (record_of(Preference, line) for line in lines)
    if step.balance_lengths:
        pairs = balance_lengths(pairs)
    if step.max_pairs is not None:
        pairs = keep_widest(pairs, step.max_pairs)
    if step.consistency_mean:
        pairs = list(pairs)
        mean = statistics.fmean(p.prob for p in pairs) if pairs else 0.0
        pairs = [replace(p, prob=mean) for p in pairs]
    return map(line_of, pairs)


def _stored(context: StepContext, lines: Iterable[bytes]) -> int:
    """Store the pairs that are not there yet, batch by batch, and count them all."""
    count, done = 0, context.folder.count("preferences")
    batch: list[bytes] = []
    for count, line in enumerate(lines, 1):
        if count > done:
            batch.append(line)
        if len(batch) == BATCH:
            context.folder.append_lines("preferences", batch)
            batch = []
    context.folder.append_lines("preferences", batch)
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
    kept = keep_widest(made, limit) if limit is not None else made
    count = _stored(context, map(line_of, kept))
    without = sum(not context.prompts[p].reference for p in groups)
    counts = {"preferences": count, "prompts": len(groups), "without_reference": without}
    return {"counts": counts}


def judge_weights(step: PairStep, judges: Iterable[str]) -> dict[str, float]:
    """The declared weights, or 1 for every judge but the one of `consistency`."""
    if step.weights is not None:
        return dict(step.weights)
    return {judge: 1.0 for judge in judges if judge != step.consistency}


def group_by_prompt(judgements: Iterable[Judgement]) -> dict[str, list[Judgement]]:
    """Judgements by prompt id."""
    groups: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        groups[judgement.prompt_id].append(judgement)
    return groups


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


def why_no_pairs(store: Store, steps: Iterable[str]) -> str:
    """What left no pairs in these steps (hashes) and in those before them, in parentheses; empty
    where nothing did."""
    reasons = [reason for marker in _markers(store, steps) for reason in _reasons(store, marker)]
    return f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""


def _markers(store: Store, steps: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """What the finished steps say of themselves, each once, those before a step after it."""
    left, seen = sorted(steps), set[str]()
    while left:
        digest = left.pop(0)
        if digest not in seen:
            seen.add(digest)
            marker = store.step(digest).done() or {}
            yield marker
            left += marker.get("inputs", {}).values()


def _reasons(store: Store, marker: Mapping[str, Any]) -> Iterator[str]:
    counts = marker.get("counts", {})
    if counts.get("tied_prompts"):
        yield f"all candidates tie on {counts['tied_prompts']} of {counts['prompts']} prompts"
    for name, digest in marker.get("inputs", {}).items():
        if name.startswith("judgements/"):
            done = store.step(digest).done() or {}
            judged = done.get("counts", {})
            if judged.get("judgements") and not judged["with_value"]:
                judge, count = name.split("/", 1)[1], judged["judgements"]
                yield f"none of the {count} verdicts of judge {judge} has a value"
                for error, times in done.get("errors", {}).items():
                    yield f"{times} verdicts of judge {judge} are missing: {error}"
    for stage in marker.get("funnel", ()):
        if stage["came"] and not stage["left"]:
            why = ", ".join(f"{reason}: {count}" for reason, count in stage["why"].items())
            yield f"the filter {stage['filter']} leaves none of {stage['came']}: {why}"
