"""How much a planned step is before it runs, at most: what a step module's `size` computes with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from rlaif.core.records import Completion, Message
from rlaif.engines.base import GenerateRequest, Model
from rlaif.judges.base import Judge, most_calls
from rlaif.pipeline.plan.base import PlanInputs, Planned

COUNTED_PROMPTS = 16
"""On how many prompts a judge's calls are counted."""


@dataclass(frozen=True)
class JudgeCalls:
    """A judge with its models by role, and what it is asked at most: `units` verdicts, model
    `calls` and new `tokens`."""

    judge: Judge
    models: Mapping[str, Model]
    units: int
    calls: int
    tokens: int


@dataclass(frozen=True)
class Size:
    """One step at most: `units` are completions, verdicts, pairs or optimiser examples, `calls`
    those to models, and `tokens` new ones. `judges` are those that it asks, counted in `calls`."""

    units: int
    calls: int = 0
    tokens: int = 0
    judges: tuple[JudgeCalls, ...] = ()


@dataclass
class Known:
    """The steps of a plan whose sizes are known already, by hash."""

    units: dict[str, int] = field(default_factory=dict)
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def records_read(self, planned: Planned, prefix: str) -> int:
        """How many records `planned` reads from its inputs whose names begin with `prefix`."""
        return sum(self.units.get(h, 0) for n, h in planned.inputs.items() if n.startswith(prefix))


def count_judge_calls(
    inputs: PlanInputs,
    planned: Planned,
    judge: Judge,
    models: Mapping[str, Model],
    count: int,
    answers: int,
) -> JudgeCalls:
    """What judging `answers` different answers to each of `count` prompts takes, by the prompts
    that cost most of a few."""
    every = inputs.prompts.every()
    ids: Collection[str] = set(planned.prompts)
    some = [p for p in every if p.prompt_id in ids or not ids][:COUNTED_PROMPTS]
    made = [_example_answer(number) for number in range(answers)]
    units = calls = tokens = 0
    for prompt in some:
        first = judge.calls(prompt, made, planned.seed)
        units, calls = max(units, len(first)), max(calls, most_calls(judge, first))
        written = [c.request for c in first if isinstance(c.request, GenerateRequest)]
        tokens = max(tokens, sum(request.sampling.max_new_tokens for request in written))
    return JudgeCalls(judge, models, count * max(units, calls), count * calls, count * tokens)


def _example_answer(number: int) -> Completion:
    text = f"answer {number}"
    messages: list[Message] = [{"role": "assistant", "content": text}]
    return Completion(text, "", number, messages, "", "", {}, "stop", digest=text)
