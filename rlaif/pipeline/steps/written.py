"""Judgements as written texts: what a judge's model was asked for each of them, and its answer.

No judgement holds its question. A judge is pure, so that its calls, made again from the same
answers and seed, are those that were asked, byte for byte; a call's id says which is which.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rlaif.core.errors import StoreError
from rlaif.core.records import VALUED, Completion, Judgement, Message, Prompt
from rlaif.engines.base import GenerateRequest, GenerateResult
from rlaif.judges.base import Answered, Call, Judge, compares_judgements, ending_request
from rlaif.judges.judgements import advise_writing, writes_verdicts
from rlaif.judges.posed import verified_word, verifies
from rlaif.pipeline.plan.base import Planned, Walk, make_example_answer
from rlaif.pipeline.steps.asking import Kept
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


def judge_of(walk: Walk, planned: Planned) -> str:
    """The judge whose judgements a step gives, which a filter may have thinned out."""
    steps = {step.hash: step for step in walk.done}
    while planned.kind == "filter":
        planned = steps[planned.inputs["judgements/0"]]
    return str(planned.step.id)


def weights_by_step(walk: Walk, used: Sequence[Planned]) -> dict[str, float]:
    """The weights of principles for steps that read the judgements of `used`. A judge with a
    constitution of its own has its own (see `PlanInputs.principle_weights`), under the names of
    filters of its judgements too."""
    weights = walk.principle_weights()
    filters = {p.id: f"{judge_of(walk, p)}/" for p in used if p.kind == "filter"}
    return weights | {
        f"{name}/{principle.removeprefix(start)}": weight
        for name, start in filters.items()
        for principle, weight in weights.items()
        if principle.startswith(start)
    }


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


def refuse_unwritten(
    walk: Walk, index: int, steps: Sequence[Planned], key: str, reasoned: bool = False
) -> None:
    """Raise ConfigError for a judge step whose judge writes no verdicts, and one that judges
    judgements. `key` names the steps; `reasoned`: yes or no after written reasons is a text too."""
    for step in steps:
        judge = step.judges[step.step.id]
        some = walk.inputs.some_prompts(step.prompts)
        if compares_judgements(judge):
            fault = "it compares judgements, and `of` it or training takes those of answers"
        elif writes_verdicts(judge, some, [make_example_answer(n) for n in range(2)]) or (
            reasoned and gives_reasons(judge)
        ):
            continue
        elif reasoned and verifies(judge):
            fault = (
                "it reads the probabilities of Yes and No: set `cot: true`, so that it writes its "
                "reasons, or learn the right verdicts of a `questions` step"
            )
        else:
            fault = advise_writing(step.step, judge)
        raise walk.inputs.fail(
            index,
            f"{key}: the judgements of {step.id!r} are no texts that can be learned: {fault}",
            key,
        )


def gives_reasons(judge: Judge) -> bool:
    """Whether a judge says yes or no after reasons that it writes."""
    return verifies(judge) and "generate" in judge.needs


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
    reasons = {
        one.digest: Kept(context.store.step(one.digest)).reasons
        for one in asked
        if gives_reasons(one.judge)
    }
    context.refuse_strangers(given.prompts())
    for name in given.prompts():
        calls: dict[str, tuple[Asked, Call]] = {}
        for one in asked:
            made = list_calls(one, context.prompts[name], answers[one.digest].of(name))
            calls |= {call.call_id: (one, call) for call in made}
        rows = {j.judgement_id: j for j in given.of(name)}
        found = []
        for row in (rows[i] for i in sorted(rows)):
            source = calls.get(row.call_id)
            if source is not None and source[1].then is not None:
                verdict = _reasoned(source[0].judge, source[1], row, reasons[source[0].digest])
                found += [] if verdict is None else [verdict]
            elif (row.raw or "").strip():
                found.append(WrittenVerdict(row, _find_question(context, row, source)))
        yield found


def _find_question(
    context: StepContext, row: Judgement, source: tuple[Asked, Call] | None
) -> list[Message]:
    if source is None or not isinstance(source[1].request, GenerateRequest):
        raise StoreError(
            f"judgement {row.judgement_id} of judge {row.judge}: its question cannot "
            "be made again from the answers that are there. A step before it was made anew: "
            f"{context.folder.advice}"
        )
    return source[1].request.messages


def _reasoned(
    judge: Judge, call: Call, row: Judgement, reasons: Mapping[str, Answered]
) -> WrittenVerdict | None:
    """A verdict after reasons, as the word that it stands for; None where it stands for neither."""
    wrote = reasons[call.call_id].answer if call.call_id in reasons else None
    word = verified_word(judge, row.score) if row.status in VALUED else None
    ending = ending_request(call, wrote) if isinstance(wrote, GenerateResult) else None
    if word is None or ending is None:
        return None
    return WrittenVerdict(row, ending.messages, word)


def list_calls(asked: Asked, prompt: Prompt, completions: Sequence[Completion]) -> list[Call]:
    """The calls that the judge's model wrote a verdict to, or reasons before one that is yes or
    no."""
    return [
        call
        for call in asked.judge.calls(prompt, completions, asked.seed)
        if isinstance(call.request, GenerateRequest)
        and (call.then is None or gives_reasons(asked.judge))
    ]
