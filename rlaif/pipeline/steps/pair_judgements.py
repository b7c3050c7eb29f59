"""Pairs of judgements: `of` names the judge step, and `better` says which judgements are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from rlaif.config.arms import HUMAN
from rlaif.config.steps import PEOPLES_LABELS, PairStep
from rlaif.core.labelled import GivenPair
from rlaif.core.records import Judgement, Preference
from rlaif.judges.judgements import compute_strengths
from rlaif.pipeline.plan.base import Known, Planned, Walk
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext
from rlaif.pipeline.steps.pair_origins import PairPlan, name_steps
from rlaif.pipeline.steps.written import (
    JUDGING,
    find_judge_steps,
    list_asked,
    read_written,
    refuse_unwritten,
)
from rlaif.preferences.labels import annotator_verdicts
from rlaif.preferences.verdict_pairs import (
    Verdicts,
    best_and_worst,
    find_agreements,
    group_questions,
    keep_fitting,
    pick_widest,
    right_and_wrong,
    verdict_preference,
)


def plan_verdict_pairs(walk: Walk, index: int, step: PairStep) -> PairPlan:
    """The pairs of the judgements that `of` names."""
    used = walk.used(index, [step.of or ""], {}, JUDGING, "of")
    steps = find_judge_steps(walk, used)
    if not steps and used:
        raise walk.inputs.fail(index, f"of: {step.of!r} gives no judgements", "of")
    refuse_unwritten(walk, index, steps, "of")
    inputs = {f"judgements/{name}": p.hash for name, p in name_steps(used).items()}
    if step.better == PEOPLES_LABELS:
        loads = _find_labelled(walk, index, step, steps)
        inputs |= {f"pairs/{i}": p.hash for i, p in enumerate(loads)}
    else:
        better = walk.used(index, [step.better or ""], {}, ("judge",), "better")
        _refuse_other_judge(walk, index, step, steps, better)
        inputs |= {f"better/{i}": p.hash for i, p in enumerate(better)}
    digest = step_hash("pair", "judgements", step.keys(), inputs, walk.round)
    return digest, inputs, used, {"asked": list_asked(steps)}


def _find_labelled(
    walk: Walk, index: int, step: PairStep, steps: Sequence[Planned]
) -> list[Planned]:
    """The loads of labelled pairs whose answers were judged."""
    judged = {h for s in steps for n, h in s.inputs.items() if n.startswith("completions/")}
    loads = [p for p in walk.done if p.hash in judged and p.kind == "load"]
    found = list({p.hash: p for p in loads if p.step.type == "pairs"}.values())
    if not found and steps:
        raise walk.inputs.fail(
            index,
            f"better: {step.of!r} judged no answers that people have labelled: let it judge loaded "
            "pairs (`load: {type: pairs}`), or name a judge step of kind `judgements` here",
            "better",
        )
    return found


def _refuse_other_judge(
    walk: Walk, index: int, step: PairStep, steps: Sequence[Planned], better: Sequence[Planned]
) -> None:
    """Raise ConfigError where `better` names no judge of these judgements."""
    of = {s.hash for s in steps}
    for judge in better:
        if not judge.compares_judgements:
            fault = f"{judge.id!r} judges answers: name a judge step of kind `judgements`"
        elif not {s.hash for s in find_judge_steps(walk, _read_by(walk, judge))} & of:
            fault = f"{judge.id!r} compared other judgements than those of {step.of!r}"
        else:
            continue
        raise walk.inputs.fail(index, f"better: {fault}, or write `labels`", "better")


def _read_by(walk: Walk, judge: Planned) -> list[Planned]:
    read = {h for n, h in judge.inputs.items() if n.startswith("judgements/")}
    return [p for p in walk.done if p.hash in read]


def size_verdicts(planned: Planned, known: Known) -> int:
    """How many pairs there may be at most: one for every two judgements, or one for each prompt."""
    if planned.step.pick == "highest_variance" and planned.step.better != PEOPLES_LABELS:
        return len(planned.prompts)
    return known.records_read(planned, "judgements/") // 2


def make_verdict_pairs(context: StepContext, counts: Counter[str]) -> Iterator[Preference]:
    """The pairs of one prompt after the other, in the order of ids; `counts` has the questions and
    what was left out by why."""
    step = context.planned.step
    names = ("questions", "tied_questions", "alike", "too_long", "same_value")
    counts.update(dict.fromkeys(names, 0))
    by_labels = step.better == PEOPLES_LABELS
    labels, pairs = _read_labels(context) if by_labels else ({}, {})
    comparisons = None if by_labels else context.by_prompt("better", Judgement)
    for written in read_written(context, "judgements", context.planned.options["asked"]):
        groups = group_questions(written)
        counts["questions"] += len(groups)
        chosen = pick_widest(groups) if step.pick == "highest_variance" else groups
        made: list[Preference] = []
        if comparisons is None:
            own = pairs.get(written[0].judgement.prompt_id, []) if written else []
            agrees = find_agreements(written, own, labels)
            for group in chosen:
                found = right_and_wrong(group, agrees)
                counts["tied_questions"] += not found
                kept, left_out = keep_fitting(found, step)
                counts.update(left_out)
                made += [verdict_preference(p, step, context.planned.round, None) for p in kept]
        elif written:
            said = comparisons.of(written[0].judgement.prompt_id)
            for group in chosen:
                made += _pair_by_strength(context, group, said, counts)
        yield from sorted(made, key=lambda p: p.preference_id)


def _pair_by_strength(
    context: StepContext, group: Verdicts, said: Sequence[Judgement], counts: Counter[str]
) -> list[Preference]:
    """The best and the worst of the verdicts on one question by what was `said` of them."""
    step = context.planned.step
    valued = [w.judgement.judgement_id for w in group if w.value is not None]
    own = {j.judgement_id: j for j in said if set(j.shown) <= set(valued)}
    comparisons = [own[name] for name in sorted(own)]
    strengths = compute_strengths(valued, comparisons) if comparisons else {}
    pair = best_and_worst(group, strengths)
    counts["tied_questions"] += pair is None
    kept, left_out = keep_fitting([pair] if pair is not None else [], step)
    counts.update(left_out)
    return [verdict_preference(p, step, context.planned.round, strengths, own) for p in kept]


def _read_labels(
    context: StepContext,
) -> tuple[dict[str, float], dict[str, list[GivenPair]]]:
    """What people said of the loaded pairs, by pair, and the pairs by prompt."""
    rows = [GivenPair(**row) for row in context.read_all("pairs", "pairs")]
    pairs = list({pair.pair_id: pair for pair in rows}.values())
    by_prompt: dict[str, list[GivenPair]] = defaultdict(list)
    for pair in pairs:
        by_prompt[pair.prompt_id].append(pair)
    said = annotator_verdicts(pairs, {HUMAN: context.judgements("pairs")}, {})
    return dict(said), by_prompt
