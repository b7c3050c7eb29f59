"""judge: every judge runs here; it says what to ask, this step asks, stores and resumes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import chain, groupby
from typing import Any, cast

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
from rlaif.records import VALUED, Completion, Judgement
from rlaif.steps.context import Engines, StepContext, by_prompt

RULE_BATCH = 256
Request = GenerateRequest | ScoreRequest | RewardRequest
KINDS = (RewardRequest, GenerateRequest, ScoreRequest)


def run(context: StepContext) -> dict[str, Any]:
    """Judge what is still missing; whole batches are committed as they come."""
    judge = context.judge()
    groups = _groups(context)
    done = {row["call_id"] for row in context.folder.read("judgements")}
    names, silent, asking = set(), [], False
    for call in _calls(context, groups):
        names.add(call.call_id)
        if call.request is None:
            silent.append(call)
        else:
            asking = asking or call.call_id not in done
    context.progress.start("judgements", len(names), len(done & names))
    parts = [_read_silent(judge, silent, done)]
    if asking:
        # Made again as they are asked, since a remote model's calls may be too many to hold.
        model, calls = context.planned.models.get("by"), _calls(context, groups)
        parts.append(ask_model(judge, model, context.engines, calls, done))
    for judgements in chain.from_iterable(parts):
        context.folder.append("judgements", judgements)
        count = len({j.call_id for j in judgements})
        context.progress.advance(count, note=context.engines.account.note())
    rows = context.folder.read("judgements")
    statuses: dict[str, int] = {}
    for row in rows:
        statuses[row["status"]] = statuses.get(row["status"], 0) + 1
    valued = sum(count for status, count in statuses.items() if status in VALUED)
    counts = {"calls": len(names), "judgements": len(rows), "with_value": valued}
    return {"counts": counts, "statuses": statuses}


def _groups(context: StepContext) -> dict[str, list[Completion]]:
    """The completions to judge by prompt, in the order of the prompts' ids."""
    groups = by_prompt(context.completions())
    wanted = set(context.planned.prompts) or set(groups)
    kept = {name: groups[name] for name in sorted(set(groups) & wanted)}
    for prompt_id in kept:
        if prompt_id not in context.prompts:
            raise ConfigError(
                f"completions of prompt {prompt_id} were loaded, and that prompt is not among the "
                "experiment's prompts; add it to the prompts file"
            )
    return kept


def _calls(context: StepContext, groups: Mapping[str, Sequence[Completion]]) -> Iterator[Call]:
    judge, seed = context.judge(), context.planned.seed
    for prompt_id, completions in groups.items():
        yield from judge.calls(context.prompts[prompt_id], completions, seed)


def ask(
    judge: Judge, model: Model | None, engines: Engines, calls: Sequence[Call], done: set[str]
) -> Iterator[list[Judgement]]:
    """Judgements of the calls that are not in `done`, a whole batch at a time. `model` answers
    those that have a request."""
    yield from _read_silent(judge, [c for c in calls if c.request is None], done)
    if any(c.request is not None and c.call_id not in done for c in calls):
        yield from ask_model(judge, model, engines, calls, done)


def _read_silent(
    judge: Judge, calls: Sequence[Call], done: AbstractSet[str]
) -> Iterator[list[Judgement]]:
    """Judgements of calls that ask no model."""
    left = [c for c in calls if c.call_id not in done]
    for start in range(0, len(left), RULE_BATCH):
        batch = left[start : start + RULE_BATCH]
        yield [j for call in batch for j in judge.read(call, None, f"program:{judge.id}")]


def ask_model(
    judge: Judge, model: Model | None, engines: Engines, calls: Iterable[Call], done: set[str]
) -> Iterator[list[Judgement]]:
    """Judgements of the calls that have a request. A concurrent engine draws them as it goes, and
    none is held longer than its answer takes."""
    if model is None:
        raise ConfigError(f"judge {judge.id} asks a model, and none was named")
    engine = engines.get(model)
    lacking = sorted(judge.needs - engine.capabilities)
    if lacking:
        raise ConfigError(f"judge {judge.id} needs {lacking}, which model {model.label!r} lacks")
    annotator = f"{model.label}:{engine.weights_hash}"
    open_calls: dict[str, Call] = {}

    def requests() -> Iterator[Request]:
        for call in calls:
            if call.request is not None and not (engine.concurrent and call.call_id in done):
                open_calls[call.call_id] = call
                yield call.request

    began = time.monotonic()
    for results in _results(engine, requests(), done):
        share = (time.monotonic() - began) / len(results)
        yield [
            replace(j, latency=result.seconds if engine.concurrent else share, cost=result.cost)
            for result in results
            for j in judge.read(open_calls.pop(result.request_id), result, annotator)
        ]
        began = time.monotonic()


def _results(
    engine: Engine, requests: Iterable[Request], done: set[str]
) -> Iterator[list[GenerateResult] | list[ScoreResult] | list[RewardResult]]:
    if not engine.concurrent:
        # Batches are laid out from the whole set, one kind of request after the other.
        requests = sorted(requests, key=lambda request: KINDS.index(type(request)))
    for kind, run in groupby(requests, key=type):
        if kind is RewardRequest:
            yield from engine.reward(cast(Iterable[RewardRequest], run), done)
        elif kind is GenerateRequest:
            yield from engine.generate(cast(Iterable[GenerateRequest], run), done)
        else:
            yield from engine.score(cast(Iterable[ScoreRequest], run), done)
