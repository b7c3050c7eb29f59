"""Judge steps of kind `judgements`: which judgements are compared, and how many comparisons that
takes. The judge step asks them as it asks about answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlaif.core.records import Completion, Judgement, Prompt
from rlaif.core.yamlio import suggest
from rlaif.judges.base import Call, Case
from rlaif.judges.common import AnswerOnly, answer_only
from rlaif.judges.judgements import group_judgements, samples_of
from rlaif.pipeline.plan.base import (
    JudgeCalls,
    Known,
    PlanInputs,
    Planned,
    Size,
    Walk,
    make_example_answer,
)
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import ByPrompt, StepContext
from rlaif.pipeline.steps.written import JUDGING, find_judge_steps, list_asked, refuse_unwritten


def plan_comparisons(walk: Walk, index: int, step: Any) -> None:
    """The comparisons of the judgements of judge `of`: the latest, or those that `uses` names."""
    sources = _find_sources(walk, index, step)
    steps = find_judge_steps(walk, sources)
    _refuse_incomparable(walk, index, step, steps)
    models = walk.asked(index, step)
    judge = walk.inputs.judges[step.id]
    answers = list(
        dict.fromkeys(h for s in steps for n, h in s.inputs.items() if n.startswith("completions/"))
    )
    prompts = tuple(dict.fromkeys(p for s in sources for p in s.prompts))
    digest = step_hash(
        "judge",
        judge.judge_hash,
        models["by"].identity(),
        [s.hash for s in sources],
        walk.seed,
    )
    planned = walk.add(
        Planned(
            digest,
            "judge",
            step.id,
            walk.seed,
            walk.round,
            step,
            inputs={f"judgements/{s.id}@{s.round}": s.hash for s in sources}
            | {f"completions/{i}": h for i, h in enumerate(answers)},
            models=models,
            prompts=prompts,
            options={"asked": list_asked(steps)},
            judges={step.id: judge},
        )
    )
    # Not among the judgements of answers: no score of an answer is made of it.
    walk.by_id[step.id, walk.round] = planned


def _find_sources(walk: Walk, index: int, step: Any) -> list[Planned]:
    if step.uses is not None:
        return walk.used(index, step.uses, {}, JUDGING)
    # A filter of them stands where they stood.
    latest = walk.judgements.values()
    found = [p for p in latest if [s.step.id for s in find_judge_steps(walk, [p])] == [step.of]]
    if found:
        return found
    hint = suggest(step.of, sorted(walk.inputs.judges))
    why = (
        f"{step.of!r} is no judge{hint}"
        if step.of not in walk.inputs.judges
        else f"judge {step.of!r} has judged nothing in this round before {step.id!r}"
    )
    raise walk.inputs.fail(index, f"of: {why}", "of")


def _refuse_incomparable(walk: Walk, index: int, step: Any, steps: list[Planned]) -> None:
    """Raise ConfigError where the judgements are not those of judge `of`, or are none that can be
    compared: written, of one answer each, several of each answer."""
    other = next((s for s in steps if s.step.id != step.of), None)
    if other is not None or not steps:
        named = "no judge step" if other is None else f"judge {other.step.id!r}"
        raise walk.inputs.fail(
            index,
            f"uses: {step.id!r} compares judgements of {step.of!r}, and not of {named}",
            "uses",
        )
    refuse_unwritten(walk, index, steps, "of")
    for source in steps:
        judge = source.judges[source.step.id]
        calls = _example_calls(walk.inputs, source, 2)
        if judge.comparative or any(len(call.shown) > 1 for call in calls):
            why = "it compares answers, and judgements of one answer are compared: take one that "
            why += "scores single answers"
        elif max(samples_of(calls).values(), default=0) < 2:
            why = "it judges each answer once: set `samples` of 2 or more"
        else:
            continue
        raise walk.inputs.fail(index, f"of: judge {step.of!r}: {why}", "of")


def _example_calls(inputs: PlanInputs, source: Planned, answers: int) -> list[Call]:
    """The most calls of a judge step about so many answers to one of a few of its prompts."""
    made = [make_example_answer(number) for number in range(answers)]
    judge = source.judges[source.step.id]
    some = inputs.some_prompts(source.prompts)
    calls = (judge.calls(prompt, made, source.seed) for prompt in some)
    return max(calls, key=len, default=[])


def size_comparisons(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """Both orders of every two judgements of an answer, none of which is missing."""
    judge = planned.judges[planned.step.id]
    answers = known.records_read(planned, "completions")
    count = len(planned.prompts) or len(inputs.prompts_by_id)
    per_prompt = -(-answers // max(count, 1))
    made = [make_example_answer(number) for number in range(per_prompt)]
    some = inputs.some_prompts(planned.prompts)
    # Of several steps of one judge each judged some of the answers.
    of = planned.options["asked"][0].judge
    samples = (samples_of(of.calls(prompt, made, planned.seed)).values() for prompt in some)
    # Of all answers, or of one of them.
    count_all = max if getattr(judge, "widest", False) else sum
    most = max((count_all([0, *(k * (k - 1) for k in own)]) for own in samples), default=0)
    calls = JudgeCalls(judge, planned.models, count * most, count * most, 0)
    return Size(calls.units, calls.calls, 0, (calls,))


class JudgementGroups:
    """The judgements of a step's inputs by prompt, as what its judge compares."""

    def __init__(self, context: StepContext):
        self._given: ByPrompt[Judgement] = context.by_prompt("judgements", Judgement)
        judge = context.judge()
        # With `reasoning: strip` it is shown the answer without the thinking before it, too.
        self._thinking = judge.thinking if isinstance(judge, AnswerOnly) else None
        self._widest = bool(getattr(judge, "widest", False))

    def list_parts(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Case]:
        """What is compared of one prompt."""
        if self._thinking is not None:
            completions = [answer_only(c, self._thinking) for c in completions]
        rows = self._given.of(prompt.prompt_id)
        return group_judgements(prompt, completions, rows, self._widest)
