"""Judgements as written texts: what a judge's model was asked for each of them, and its answer.

No judgement holds its question. A judge is pure, so that its calls, made again from the same
answers and seed, are those that were asked, byte for byte; a call's id says which is which.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rlaif.core.errors import StoreError
from rlaif.core.records import Completion, Judgement, Message, Prompt
from rlaif.engines.base import GenerateRequest
from rlaif.judges.base import Judge, compares_judgements
from rlaif.judges.judgements import advise_writing, writes_verdicts
from rlaif.pipeline.plan.base import COUNTED_PROMPTS, Planned, Walk, make_example_answer
from rlaif.pipeline.steps.context import ByPrompt, StepContext
from rlaif.preferences.verdict_pairs import WrittenVerdict

JUDGING = ("judge", "filter")
"""Kinds of steps that give judgements whose questions are known."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A judge step: its judge, its seed and the steps (hashes) whose completions it judged."""

    digest: str
    judge: Judge
    seed: int
    completions: tuple[str, ...]


def find_judge_steps(walk: Walk, steps: Iterable[Planned]) -> list[Planned]:
    """The judge steps that the judgements of these steps come from, through filters, each once."""
    planned = {one.hash: one for one in walk.done}
    found: dict[str, Planned] = {}
    left = list(steps)
    while left:
        one = left.pop(0)
        if one.kind == "judge":
            found[one.hash] = one
        elif one.kind == "filter":
            below = [h for n, h in one.inputs.items() if n.startswith("judgements/")]
            left += [planned[h] for h in below if h in planned]
    return list(found.values())


def list_asked(steps: Iterable[Planned]) -> list[Asked]:
    """What makes the questions of these judge steps again."""
    return [
        Asked(
            step.hash,
            step.judges[step.step.id],
            step.seed,
            tuple(h for n, h in step.inputs.items() if n.startswith("completions/")),
        )
        for step in steps
    ]


def refuse_unwritten(walk: Walk, index: int, steps: Sequence[Planned], key: str) -> None:
    """Raise ConfigError for a judge step whose judge writes no verdicts, and one that judges
    judgements. `key` names the steps."""
    prompts = walk.inputs.every_prompt()
    for step in steps:
        judge = step.judges[step.step.id]
        wanted = set(step.prompts)
        some = [p for p in prompts if p.prompt_id in wanted or not wanted][:COUNTED_PROMPTS]
        if compares_judgements(judge):
            fault = "it compares judgements, and `of` it or training takes those of answers"
        elif writes_verdicts(judge, some, [make_example_answer(n) for n in range(2)]):
            continue
        else:
            fault = advise_writing(step.step, judge)
        raise walk.inputs.fail(
            index,
            f"{key}: the judgements of {step.id!r} are no texts that can be learned: {fault}",
            key,
        )


def read_written(
    context: StepContext, prefix: str, asked: Sequence[Asked]
) -> Iterator[list[WrittenVerdict]]:
    """The written judgements in the inputs under `prefix` with their questions, by prompt in the
    order of ids, each once; those of no text are left out.

    Raises StoreError where a judgement is of none of the calls of `asked`.
    """
    given = context.by_prompt(prefix, Judgement)
    answers = {
        one.digest: ByPrompt([context.store.step(h) for h in one.completions], Completion)
        for one in asked
    }
    prompts = given.prompts()
    context.refuse_strangers(prompts)
    for name in prompts:
        questions: dict[str, list[Message]] = {}
        for one in asked:
            questions |= make_questions(one, context.prompts[name], answers[one.digest].of(name))
        rows = {j.judgement_id: j for j in given.of(name) if (j.raw or "").strip()}
        strange = next((j for j in rows.values() if j.call_id not in questions), None)
        if strange is not None:
            raise StoreError(
                f"judgement {strange.judgement_id} of judge {strange.judge}: its question cannot "
                "be made again from the answers that are there. A step before it was made anew: "
                f"{context.folder.advice}"
            )
        yield [WrittenVerdict(rows[i], questions[rows[i].call_id]) for i in sorted(rows)]


def make_questions(
    asked: Asked, prompt: Prompt, completions: Sequence[Completion]
) -> dict[str, list[Message]]:
    """The turns that the judge's model was sent, by call id, of the calls that it wrote a verdict
    to."""
    return {
        call.call_id: call.request.messages
        for call in asked.judge.calls(prompt, completions, asked.seed)
        if isinstance(call.request, GenerateRequest) and call.then is None
    }
