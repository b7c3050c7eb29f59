"""logprobs: what another model thinks of given completions, token by token."""

from __future__ import annotations

import math
from typing import Any

from rlaif.core.records import Completion, are_own, sequence_of, turns_of
from rlaif.engines.base import ScoreRequest, ScoreResult
from rlaif.pipeline.plan.base import Known, PlanInputs, Planned, Size
from rlaif.pipeline.steps.context import StepContext

VERSION = 3
MAKES = "log-probs"
SECONDS_PER_UNIT = 0.1


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """One call for each completion."""
    count = known.records_read(planned, "completions")
    return Size(count, count)


def run(context: StepContext) -> dict[str, Any]:
    """Rows {completion_id, logprob (sum, nats), tokens}; a row that failed has logprob None."""
    completions = {
        c.completion_id: c
        for c in context.completions()
        if c.finish_reason != "failed" and (c.token_ids or (c.token_ids is None and c.text))
    }
    done = {str(row["completion_id"]) for row in context.folder.read("logprobs")}
    if context.planned.options["own"]:
        # The model that wrote the answers gave their log-probs while it sampled.
        known = [c for c in completions.values() if c.logprobs and c.completion_id not in done]
        rows = [
            _make_row(c.completion_id, math.fsum(c.logprobs or ()), len(c.logprobs or ()))
            for c in known
        ]
        context.folder.append("logprobs", rows)
        done |= {c.completion_id for c in known}
        completions = {name: c for name, c in completions.items() if name not in done}
    requests = [
        ScoreRequest(
            name,
            context.prompts[c.prompt_id].messages,
            continuation=None if c.token_ids else c.text,
            continuation_ids=sequence_of(c),
        )
        for name, c in sorted(completions.items())
    ]
    context.progress.start("log-probs", len(requests), len(done & set(completions)))
    if not set(completions) <= done:
        engine = context.engines.get(context.planned.models["by"])
        if "token_logprobs" not in engine.capabilities:
            # M0 on a server: what it cannot score has no row, and metrics that need one are absent.
            requests = []
        for batch in engine.score(requests, done):
            rows = [_read_row(r, completions[r.request_id]) for r in batch]
            context.folder.append("logprobs", rows)
            context.progress.advance(len(batch), sum(len(r.token_logprobs) for r in batch))
    return {"counts": {"scored": len(context.folder.read("logprobs"))}}


def _read_row(result: ScoreResult, completion: Completion) -> dict[str, Any]:
    """The row of a result: of an episode the model's own tokens count."""
    own = result.token_logprobs
    turns = turns_of(completion)
    if turns and own:
        own = [value for value, kept in zip(own, are_own(turns), strict=True) if kept]
    return _make_row(result.request_id, None if result.error else math.fsum(own), len(own))


def _make_row(completion_id: str, logprob: float | None, tokens: int) -> dict[str, Any]:
    return {"completion_id": completion_id, "logprob": logprob, "tokens": tokens}
