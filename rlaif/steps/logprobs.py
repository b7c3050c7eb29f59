"""logprobs: what another model thinks of given completions, token by token."""

from __future__ import annotations

import math
from typing import Any

from rlaif.engines.base import ScoreRequest
from rlaif.steps.context import StepContext


def run(context: StepContext) -> dict[str, Any]:
    """Rows {completion_id, logprob (sum, nats), tokens}; a row that failed has logprob None."""
    completions = {
        c.completion_id: c for c in context.completions() if c.finish_reason != "failed" and c.token_ids
    }
    requests = [
        ScoreRequest(
            name, context.prompts[c.prompt_id].messages, continuation_ids=list(c.token_ids or [])
        )
        for name, c in sorted(completions.items())
    ]
    done = {str(row["completion_id"]) for row in context.folder.read("logprobs")}
    context.progress.start("log-probs", len(requests), len(done))
    if len(done) < len(requests):
        engine = context.engines.get(context.planned.models["by"])
        for batch in engine.score(requests, done):
            rows = [
                {
                    "completion_id": r.request_id,
                    "logprob": None if r.error else math.fsum(r.token_logprobs),
                    "tokens": len(r.token_logprobs),
                }
                for r in batch
            ]
            context.folder.append("logprobs", rows)
            context.progress.advance(len(batch), sum(len(r.token_logprobs) for r in batch))
    return {"counts": {"scored": len(requests)}}
