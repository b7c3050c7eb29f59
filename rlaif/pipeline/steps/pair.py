"""pair: combine the judges' scores and make preferences.

Where there are no pairs it says why, as far as finished steps tell.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from msgspec.structs import replace

from rlaif.config.steps import PairStep
from rlaif.core.ids import unite_ids
from rlaif.core.records import Completion, Judgement, Preference
from rlaif.core.rowfiles import line_of, record_of
from rlaif.core.store import Store
from rlaif.core.workers import count_workers, in_order
from rlaif.core.yamlio import suggest
from rlaif.pipeline.plan.base import Known, PlanInputs, Planned, Size, Walk
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext, by_prompt
from rlaif.pipeline.steps.pair_judgements import (
    make_verdict_pairs,
    plan_verdict_pairs,
    size_verdicts,
)
from rlaif.pipeline.steps.pair_origins import (
    ANSWERING,
    make_origin_pairs,
    name_steps,
    plan_origins,
    refuse_unasked,
    size_origins,
)
from rlaif.pipeline.steps.training_data import data_kind
from rlaif.pipeline.steps.written import find_judge_steps, weights_by_step
from rlaif.preferences.aggregate import candidate_scores, weights_of
from rlaif.preferences.pairing import (
    PairSettings,
    Work,
    against_reference,
    balance_lengths,
    keep_widest,
    pairs_of,
)

VERSION = 3
MAKES = "preferences"
SECONDS_PER_UNIT = 0.0

BATCH = 1000
AT_ONCE = 1000
"""Prompts whose pairs are made at once."""
ALONE = 16_000
"""Pairs of so few prompts are made before other processes have started."""
SPREAD_FLOOR = 0.05
"""The least spread that `standardise` divides by: a constant judge's noise must not be blown up."""


def plan(walk: Walk, index: int, step: PairStep) -> None:
    """Preferences from this round's judgements, which replace those before them."""
    if any("@" in name for name in step.uses or ()):
        message = "uses: a pair step takes this round's judgements; name them without `@`"
        raise walk.inputs.fail(index, message, "uses")
    if step.form == "judgements":
        digest, inputs, read, options = plan_verdict_pairs(walk, index, step)
        _plan_pairs(walk, step, digest, inputs, read, options)
        return
    if step.form == "origin":
        judges = _find_judges(walk, index, step) if step.asks_scores else []
        digest, inputs, read, options = plan_origins(walk, index, step, judges)
        _plan_pairs(walk, step, digest, inputs, read, options)
        return
    answers = _find_candidates(walk, index, step)
    if step.strategy == "reference":
        _paired_with_references(walk, index, step, answers)
        return
    used = _find_judges(walk, index, step)
    if step.candidates is None:
        _refuse_unseen(walk, index, used)
    else:
        for judge in find_judge_steps(walk, used):
            refuse_unasked(walk, index, judge, list(answers.values()))
    inputs = {f"judgements/{p.id}": p.hash for p in used}
    inputs |= {f"completions/{k}": p.hash for k, p in answers.items()}
    if step.standardise == "initial":
        # The round's own judges, on M0's samples of the first round.
        first = {p.id: walk.by_id.get((p.id, walk.before + 1)) for p in used}
        counts = {p.id for p in used if step.weights is None or step.weights.get(p.id)}
        absent = sorted(name for name in counts if first[name] is None)
        if absent:
            raise walk.inputs.fail(
                index,
                f"standardise: judge {absent[0]!r} has no verdicts in round 1 of its stage, whose "
                "mean and spread would be used: let it run there, or leave `standardise` out",
                "standardise",
            )
        inputs |= {f"initial/{i}": p.hash for i, p in first.items() if p is not None}
    weights = weights_by_step(walk, used)
    keys = step.keys()
    digest = step_hash("pair", keys, inputs, weights, walk.seed, walk.round)
    _plan_pairs(walk, step, digest, inputs, used, {"principle_weights": weights})


def _find_judges(walk: Walk, index: int, step: PairStep) -> list[Planned]:
    """The judge steps whose scores decide."""
    used = walk.used(index, step.uses, walk.judgements, ("judge", "filter", "load"))
    other = next((p for p in used if p.kind == "filter" and data_kind(p) != "judgements"), None)
    if other is not None:
        message = f"uses: {other.id!r} gives {data_kind(other)}; a pair step takes judgements"
        raise walk.inputs.fail(index, message, "uses")
    if not used:
        raise walk.inputs.fail(index, "pair has no judgements: add a judge step before it")
    meta = next(
        (judge for judge in find_judge_steps(walk, used) if judge.compares_judgements), None
    )
    if meta is not None:
        raise walk.inputs.fail(
            index,
            f"uses: judge {meta.id!r} compares judgements and scores no answer: name it in "
            f"`better`, beside `of: {meta.step.of}`",
            "uses",
        )
    fault = pair_fault(step, {p.id for p in used})
    if fault is not None:
        key, message = fault
        raise walk.inputs.fail(index, f"{key}: {message}", key)
    return used


def _find_candidates(walk: Walk, index: int, step: PairStep) -> dict[str, Planned]:
    """The steps whose completions compete, by id; of several rounds of one by ID@ROUND."""
    if step.candidates is None:
        return walk.completions
    return name_steps(walk.used(index, step.candidates, {}, ANSWERING, "candidates"))


def _refuse_unseen(walk: Walk, index: int, judges: list[Planned]) -> None:
    """Refuse judges of this round's answers that are not among those that pairs are made of."""
    planned = {step.hash: step for step in walk.done}
    seen = {step.hash for step in walk.completions.values()}
    left = [step for step in walk.completions.values() if step.kind == "filter"]
    while left:
        # What a filter refused was judged, and rightly makes no pair.
        below = [planned[h] for h in left.pop().inputs.values() if h in planned]
        left += [step for step in below if step.kind == "filter" and step.hash not in seen]
        seen |= {step.hash for step in below}
    for judge in judges:
        judged = [h for name, h in judge.inputs.items() if name.startswith("completions/")]
        steps = [planned[h] for h in judged if h not in seen]
        unseen = next((step for step in steps if step.round == walk.round), None)
        if unseen is not None:
            only = ", ".join(sorted(walk.completions))
            raise walk.inputs.fail(
                index,
                f"this step sees the answers of {only} alone, and judge {judge.id!r} judged those "
                f"of {unseen.id} too, which would make no pair. Sample all answers in one step "
                "(`pool` names several models), or leave the others out of the judge's `uses`",
            )


def pair_fault(step: PairStep, judges: set[str]) -> tuple[str, str] | None:
    """The key at fault and what is wrong with it, where the weights or the consistency judge do not
    fit the ids of the judges that are there; None where they do."""
    for key, name in [
        *(("weights", n) for n in step.weights or {}),
        ("consistency", step.consistency),
    ]:
        if name is not None and name not in judges:
            return key, f"{name!r} is no judge before this step{suggest(name, sorted(judges))}"
    if step.weights is not None and not any(step.weights.values()):
        return "weights", "every weight is 0; nothing counts"
    if step.consistency in (step.weights or {}) or judges == {step.consistency}:
        return "consistency", (
            f"{step.consistency!r} is compared with the judges that choose the "
            "pairs; give it no weight, and have at least one other judge"
        )
    return None


def _paired_with_references(
    walk: Walk, index: int, step: PairStep, answers: Mapping[str, Planned]
) -> None:
    if not answers:
        raise walk.inputs.fail(index, "pair has no completions: sample first")
    if not any(p.reference for p in walk.inputs.prompts.train):
        raise walk.inputs.fail(
            index,
            "strategy: no training prompt has a `reference` answer; give the prompts file that "
            "column, or name it with `prompts.columns.reference`",
            "strategy",
        )
    used = list(answers.values())
    inputs = {f"completions/{k}": p.hash for k, p in answers.items()}
    keys = step.keys()
    ids = tuple(p for u in used for p in u.prompts)
    digest = step_hash("pair", keys, inputs, walk.facts(ids or None), walk.round)
    _plan_pairs(walk, step, digest, inputs, used, {})


def _plan_pairs(
    walk: Walk,
    step: PairStep,
    digest: str,
    inputs: dict[str, str],
    used: list[Planned],
    options: dict[str, Any],
) -> None:
    prompts = unite_ids(u.prompts for u in used)
    place = (walk.seed, walk.round)
    planned = walk.add(Planned(digest, "pair", step.id, *place, step, inputs, {}, prompts, options))
    walk.replace(walk.preferences, step.id)
    walk.preferences = [planned]
    walk.by_id[step.id, walk.round] = planned


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """The pairs that the strategy makes of all candidates of every prompt, or that there may be by
    origin or of judgements."""
    step = planned.step
    if step.form != "score":
        pairs = (
            size_origins(planned, known) if step.form == "origin" else size_verdicts(planned, known)
        )
        return Size(min(pairs, step.max_pairs or pairs))
    answers = known.records_read(planned, "completions")
    candidates = -(-answers // max(len(planned.prompts), 1))
    per_prompt = 1
    if step.strategy in ("margin", "all"):
        per_prompt = candidates * (candidates - 1) // 2
    elif step.strategy == "reference":
        per_prompt = candidates
    pairs = len(planned.prompts) * per_prompt
    return Size(min(pairs, step.max_pairs or pairs))


def run(context: StepContext) -> dict[str, Any]:
    """The pairs of one prompt after the other, in the order of ids; what is stored is not stored
    again. Raises ConfigError where completions are of a prompt that the experiment lacks."""
    step = context.planned.step
    if step.form != "score":
        return _make_unscored(context)
    if step.strategy == "reference":
        return _against_references(context)
    settings = _make_settings(context)
    counts = {"preferences": 0, "prompts": 0, "tied_prompts": 0}
    if step.consistency is not None:
        counts["unranked_prompts"] = 0

    def pair_lines() -> Iterator[bytes]:
        workers = count_workers() if len(context.prompts) > ALONE else 1
        for made, found in in_order(pairs_of, _split_work(context, settings), workers):
            for name, count in found.items():
                counts[name] += count
            yield from made

    counts["preferences"] = _store_pairs(context, _finish_pairs(pair_lines(), step))
    return {"counts": counts, "weights": settings.weights}


def _make_unscored(context: StepContext) -> dict[str, Any]:
    """Pairs by origin, and those of judgements."""
    planned, step = context.planned, context.planned.step
    found: Counter[str] = Counter()
    weights: dict[str, float] = {}
    if step.form == "judgements":
        made = make_verdict_pairs(context, found)
    else:
        weights = judge_weights(step, _judgement_inputs(planned)) if step.asks_scores else {}
        made = make_origin_pairs(context, weights, found)
    count = _store_pairs(context, _finish_pairs(map(line_of, made), step))
    return {"counts": {"preferences": count, **found}} | ({"weights": weights} if weights else {})


def _judgement_inputs(planned: Planned) -> dict[str, str]:
    """Judge to the name of its judgements among the inputs."""
    return {n.split("/", 1)[1]: n for n in planned.inputs if n.startswith("judgements/")}


def _make_settings(context: StepContext) -> PairSettings:
    planned, step = context.planned, context.planned.step
    principle_weights = planned.options["principle_weights"]
    weights = judge_weights(step, _judgement_inputs(planned))
    if step.standardise == "initial":
        initial = {judge: context.judgements(f"initial/{judge}") for judge in weights}
        weights = standardised(initial, weights, principle_weights)
    return PairSettings(step, planned.seed, planned.round, weights, principle_weights)


def _split_work(context: StepContext, settings: PairSettings) -> Iterator[Work]:
    """The prompts that have completions, in the order of ids, some at a time."""
    inputs = _judgement_inputs(context.planned)
    judgements = {judge: context.by_prompt(name, Judgement) for judge, name in inputs.items()}
    completions = context.by_prompt("completions", Completion)
    context.refuse_strangers(completions.prompts())
    prompts = completions.prompts()
    while ids := list(islice(prompts, AT_ONCE)):
        yield Work(
            settings,
            [context.prompts[p] for p in ids],
            completions.parts(ids),
            {judge: given.parts(ids) for judge, given in judgements.items()},
        )


def _finish_pairs(lines: Iterable[bytes], step: PairStep) -> Iterable[bytes]:
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


def _store_pairs(context: StepContext, lines: Iterable[bytes]) -> int:
    """Store the pairs that are not there yet, batch by batch, and count them all."""
    count, done = 0, context.folder.count("preferences")
    batch: list[bytes] = []
    for count, line in enumerate(lines, 1):
        # Pairs are made in the same order each time: what is stored is passed over by its number.
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
    source = context.planned.step.source
    made = [
        pair
        for prompt_id in sorted(groups)
        for pair in sorted(
            against_reference(context.prompts[prompt_id], groups[prompt_id], number, source),
            key=lambda pair: pair.preference_id,
        )
    ]
    kept = keep_widest(made, limit) if limit is not None else made
    count = _store_pairs(context, map(line_of, kept))
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
            for score in candidate_scores(rows, weights_of(judge, principle_weights), True).values()
            if score is not None
        ]
        spread = statistics.pstdev(values) if len(values) > 1 else 0.0
        scaled[judge] = weight / max(spread, SPREAD_FLOOR)
    total, wanted = sum(scaled.values()), sum(weights.values())
    return {judge: weight * wanted / total for judge, weight in scaled.items()}


def why_no_pairs(store: Store, steps: Iterable[str]) -> str:
    """What left no pairs in these steps (hashes) and in those before them, in parentheses; empty
    where nothing did."""
    reasons = [
        reason for marker in _read_markers(store, steps) for reason in _list_reasons(store, marker)
    ]
    return f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""


def _read_markers(store: Store, steps: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """What the finished steps say of themselves, each once, those before a step after it."""
    left, seen = sorted(steps), set[str]()
    while left:
        digest = left.pop(0)
        if digest not in seen:
            seen.add(digest)
            marker = store.step(digest).done() or {}
            yield marker
            left += marker.get("inputs", {}).values()


_LEFT_OUT = {
    "unscored": "an answer has no score",
    "not_better": "the chosen answer does not score more, by `min_margin` or more",
}
"""Why pairs by origin were left out, by the name of their count."""


def _list_verdict_reasons(counts: Mapping[str, int]) -> Iterator[str]:
    every = counts["questions"]
    if counts.get("tied_questions"):
        tied = counts["tied_questions"]
        yield f"on {tied} of {every} questions no judgement is better than another"
    for name, why in (("alike", "say the same"), ("too_long", "are longer than `max_chars`")):
        if counts.get(name):
            yield f"{counts[name]} pairs of judgements {why}"


def _list_reasons(store: Store, marker: Mapping[str, Any]) -> Iterator[str]:
    counts = marker.get("counts", {})
    if counts.get("questions"):
        yield from _list_verdict_reasons(counts)
    for why, said in _LEFT_OUT.items():
        if counts.get(why) and not counts.get("preferences"):
            yield f"{counts[why]} pairs by origin were left out: {said}"
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
