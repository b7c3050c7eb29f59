"""How long prompts, answers and questions are before any is made: of prompts by some real ones, of
answers at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlaif.config.on_policy import RolloutTrain
from rlaif.config.steps import SampleStep
from rlaif.core.records import Completion, Prompt
from rlaif.engines.base import GenerateRequest, RewardRequest, ScoreRequest
from rlaif.pipeline.plan.base import JudgeCalls, PlanInputs, Planned
from rlaif.pipeline.steps.revision_turns import example_messages

BYTES_PER_TOKEN = 4.0
"""English text has about 4 bytes in a token."""
WRITING = ("sample", "revise")
"""Kinds of steps that write answers, `max_new_tokens` long at most."""


def prompt_texts(prompts: Sequence[Prompt]) -> list[str]:
    """The turns of each prompt as one text."""
    return ["".join(m["content"] for m in p.messages) for p in prompts]


def mean_tokens(texts: Sequence[str]) -> float:
    """Tokens of a text, about."""
    return sum(len(text.encode()) for text in texts) / max(len(texts), 1) / BYTES_PER_TOKEN


def answer_tokens(planned: Planned, steps: Mapping[str, Planned]) -> int:
    """How long the answers that a step has judged may be; of given answers, as long as a sample
    step's."""
    if isinstance(planned.step, RolloutTrain):
        return planned.step.max_new_tokens
    read = [steps[digest] for digest in planned.inputs.values() if digest in steps]
    lengths = [one.step.max_new_tokens for one in read if one.kind in WRITING]
    return max(lengths, default=SampleStep().max_new_tokens)


def learned_tokens(planned: Planned, steps: Mapping[str, Planned], longest: int) -> int:
    """How long the answers may be that a training learns from: as the sample steps allow from which
    they come; `longest` where some were given."""
    lengths, seen = [], set()
    waiting = list(planned.inputs.values())
    while waiting:
        digest = waiting.pop()
        if digest in seen or digest not in steps:
            continue
        seen.add(digest)
        one = steps[digest]
        if one.kind == "load":
            return longest
        if one.kind in WRITING:
            lengths.append(one.step.max_new_tokens)
        else:
            waiting += one.inputs.values()
    return min(longest, max(lengths, default=longest))


def request_texts(inputs: PlanInputs, planned: Planned, tokens: int) -> list[str]:
    """What a step that writes asks about each of some prompts; the answers that it reads have
    `tokens` tokens at most."""
    prompts = inputs.some_prompts()
    if planned.kind != "revise":
        return prompt_texts(prompts)
    longest = _longest_answers(max(tokens, planned.step.max_new_tokens))[0]
    asked = example_messages(inputs, planned, prompts, longest)
    return ["".join(m["content"] for m in messages) for messages in asked]


def question_texts(ask: JudgeCalls, prompts: Sequence[Prompt], tokens: int, seed: int) -> list[str]:
    """What a judge asks about two answers of so many tokens to each prompt."""
    longest = _longest_answers(tokens)
    requests = (
        call.request for prompt in prompts for call in ask.judge.calls(prompt, longest, seed)
    )
    return [
        "".join(m["content"] for m in request.messages)
        + (request.answer["content"] if isinstance(request, RewardRequest) else "")
        for request in requests
        if isinstance(request, GenerateRequest | RewardRequest | ScoreRequest)
    ]


def _longest_answers(tokens: int) -> list[Completion]:
    """Two different answers of so many tokens."""
    size = round(tokens * BYTES_PER_TOKEN)
    return [
        Completion(
            completion_id=name,
            prompt_id="",
            sample_index=index,
            messages=[{"role": "assistant", "content": name * size}],
            model="",
            weights_hash="",
            sampling={},
            finish_reason="length",
        )
        for index, name in enumerate("ab")
    ]
