"""judge: every judge runs here; it says what to ask, this step asks, stores and resumes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from rlaif.data.labelled import LabelledPair
from rlaif.engines.base import (
    Engine,
    GenerateRequest,
    GenerateResult,
    Model,
    RewardRequest,
    RewardResult,
    ScoreRequest,
    ScoreResult,
)
from rlaif.errors import ConfigError
from rlaif.judges.base import Call, Judge
from rlaif.records import VALUED, Judgement, from_json
from rlaif.steps.context import Engines, Progress, StepContext, by_prompt
from rlaif.store import StepFolder

RULE_BATCH = 256


def run(context: StepContext) -> dict[str, Any]:
    """Judge what is still missing; whole batches are committed as they come."""
    planned, judge = context.planned, context.judge()
    groups = by_prompt(context.completions())
    calls: list[Call] = []
    wanted = set(planned.prompts) or set(groups)
    for prompt_id in sorted(set(groups) & wanted):
        prompt = context.prompts.get(prompt_id)
        if prompt is None:
            raise ConfigError(
                f"completions of prompt {prompt_id} were loaded, and that prompt is not among the "
                "experiment's prompts; add it to the prompts file"
            )
        calls += judge.calls(prompt, groups[prompt_id], planned.seed)
    rows = context.folder.read("judgements")
    done = {row["call_id"] for row in rows}
    context.progress.start("judgements", len(calls), len(done & {c.call_id for c in calls}))
    model = planned.models.get("by")
    for judgements in ask(judge, model, context.engines, calls, done):
        context.folder.append("judgements", judgements)
        context.progress.advance(len({j.call_id for j in judgements}))
    rows = context.folder.read("judgements")
    statuses: dict[str, int] = {}
    for row in rows:
        statuses[row["status"]] = statuses.get(row["status"], 0) + 1
    valued = sum(count for status, count in statuses.items() if status in VALUED)
    counts = {"calls": len(calls), "judgements": len(rows), "with_value": valued}
    return {"counts": counts, "statuses": statuses}


def judge_labelled(
    judge: Judge,
    model: Model | None,
    engines: Engines,
    pairs: Sequence[LabelledPair],
    folder: StepFolder,
    progress: Progress,
    seed: int,
) -> list[Judgement]:
    """The judgements of labelled pairs, those in `folder` and those still missing, which are
    stored there batch by batch."""
    made = (judge.calls(p.prompt, [p.first, p.second], seed) for p in pairs)
    calls = list({call.call_id: call for row in made for call in row}.values())
    folder.repair()
    done = {row["call_id"] for row in folder.read("judgements")}
    progress.start("judgements", len(calls), len(done))
    for judgements in ask(judge, model, engines, calls, done):
        folder.append("judgements", judgements)
        progress.advance(len({j.call_id for j in judgements}))
    progress.finish()
    return [from_json(Judgement, row) for row in folder.read("judgements")]


def ask(
    judge: Judge, model: Model | None, engines: Engines, calls: list[Call], done: set[str]
) -> Iterator[list[Judgement]]:
    """Judgements of the calls that are not in `done`, a whole batch at a time. `model` answers
    those that have a request."""
    silent = [c for c in calls if c.request is None and c.call_id not in done]
    for start in range(0, len(silent), RULE_BATCH):
        batch = silent[start : start + RULE_BATCH]
        yield [j for call in batch for j in judge.read(call, None, f"program:{judge.id}")]
    asked = {c.call_id: c for c in calls if c.request is not None}
    if all(name in done for name in asked):
        return
    if model is None:
        raise ConfigError(f"judge {judge.id} asks a model, and none was named")
    engine = engines.get(model)
    lacking = sorted(judge.needs - engine.capabilities)
    if lacking:
        raise ConfigError(f"judge {judge.id} needs {lacking}, which model {model.label!r} lacks")
    annotator = f"{model.label}:{engine.weights_hash}"
    began = time.monotonic()
    for results in _ask(engine, list(asked.values()), done):
        seconds = (time.monotonic() - began) / len(results)
        yield [
            replace(j, latency=seconds)
            for result in results
            for j in judge.read(asked[result.request_id], result, annotator)
        ]
        began = time.monotonic()


def _ask(
    engine: Engine, calls: list[Call], done: set[str]
) -> Iterator[list[GenerateResult] | list[ScoreResult] | list[RewardResult]]:
    generate = [c.request for c in calls if isinstance(c.request, GenerateRequest)]
    score = [c.request for c in calls if isinstance(c.request, ScoreRequest)]
    reward = [c.request for c in calls if isinstance(c.request, RewardRequest)]
    if reward:
        yield from engine.reward(reward, done)
    if generate:
        yield from engine.generate(generate, done)
    if score:
        yield from engine.score(score, done)
