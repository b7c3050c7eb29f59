"""sample: `n` completions of each prompt from one model."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any

from rlaif.config import SampleStep
from rlaif.engines.base import Engine, GenerateRequest, GenerateResult, Sampling
from rlaif.records import Completion, Message, Prompt, content_hash
from rlaif.steps.context import StepContext


def run(context: StepContext) -> dict[str, Any]:
    """Sample what is still missing; whole batches are committed as they come."""
    planned, step = context.planned, context.planned.step
    total = len(planned.prompts) * step.n
    done: set[str] = set()
    tokens = failed = 0
    for row in context.folder.rows("completions"):
        done.add(row["completion_id"])
        tokens += len(row["token_ids"] or [])
        failed += row["finish_reason"] == "failed"
    context.progress.start("completions", total, len(done))
    if len(done) < total:
        engine = context.engines.get(planned.models["by"])
        asked: dict[str, tuple[Prompt, int]] = {}
        requests = _requests(context, asked, done if engine.concurrent else frozenset())
        for batch in engine.generate(requests, done):
            made = [_completion(r, *asked.pop(r.request_id), step, engine, planned) for r in batch]
            context.folder.append("completions", made)
            new = sum(r.tokens_made for r in batch)
            tokens += new
            failed += sum(r.finish_reason == "failed" for r in batch)
            context.progress.advance(len(batch), new, context.engines.account.note())
    return {"counts": {"completions": total, "failed": failed}, "tokens": tokens}


def _requests(
    context: StepContext, asked: dict[str, tuple[Prompt, int]], skipped: AbstractSet[str]
) -> Iterator[GenerateRequest]:
    """The requests but for those in `skipped`, made as they are drawn. What they ask for is in
    `asked` until it is taken out."""
    planned, step = context.planned, context.planned.step
    for prompt in context.chosen_prompts():
        for index in range(step.n):
            name = "k_" + content_hash(planned.hash, prompt.prompt_id, index)
            if name not in skipped:
                asked[name] = (prompt, index)
                sampling = _sampling(step, planned.options["sampling_seed"], prompt, index)
                yield GenerateRequest(name, prompt.messages, sampling)


def _sampling(step: SampleStep, seed: str, prompt: Prompt, index: int) -> Sampling:
    own = int(content_hash("sampling", seed, prompt.prompt_id, index, length=8), 16)
    return Sampling(
        step.max_new_tokens,
        step.temperature,
        step.top_p,
        step.top_k,
        tuple(step.stop),
        own & 0x7FFFFFFF,
    )


def _completion(
    result: GenerateResult,
    prompt: Prompt,
    index: int,
    step: SampleStep,
    engine: Engine,
    planned: Any,
) -> Completion:
    failed = result.finish_reason == "failed"
    messages: list[Message] = [] if failed else [{"role": "assistant", "content": result.text}]
    setting = planned.models["by"].spec.system_prompt
    return Completion(
        completion_id=result.request_id,
        prompt_id=prompt.prompt_id,
        sample_index=index,
        messages=messages,
        model=planned.models["by"].label,
        weights_hash=engine.weights_hash,
        sampling=step.model_dump(mode="json", exclude={"id", "by", "prompts"}),
        finish_reason=result.finish_reason,
        # A server counts tokens and does not say which: unknown is not none.
        token_ids=None if result.new_tokens is not None else result.token_ids,
        logprobs=result.logprobs or None,
        system_prompt=setting,
        rendered_hash=result.rendered_hash,
        digest=content_hash(messages),
        error=result.error,
    )
