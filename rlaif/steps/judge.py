"""judge: a judge's judgements of the completions so far. Judges that ask once for a verdict are
asked here, calls made as they are asked; the others in `asking`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import Any

from rlaif.data.labelled import LabelledPair
from rlaif.engines.base import Model
from rlaif.errors import ConfigError
from rlaif.judges.base import Answered, Call, Judge, Plain, is_staged, read_answer
from rlaif.records import VALUED, Completion, Judgement
from rlaif.steps.asking import Kept, Request, results_of, verdicts
from rlaif.steps.context import Engines, Progress, StepContext, by_prompt
from rlaif.store import StepFolder

RULE_BATCH = 256


def run(context: StepContext) -> dict[str, Any]:
    """Judge what is still missing; whole batches are committed as they come."""
    judge = context.judge()
    groups = _groups(context)
    done = {row["call_id"] for row in context.folder.read("judgements")}
    names, silent, asking, turns = set(), [], False, False
    for call in _calls(context, groups):
        names.add(call.call_id)
        turns = turns or call.then is not None
        if call.request is None:
            silent.append(call)
        else:
            asking = asking or call.call_id not in done
    if is_staged(judge) or turns:
        return _in_turns(context, judge, groups)
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
    return _summary(len(names), [row["status"] for row in rows])


def _in_turns(
    context: StepContext, judge: Judge, groups: Mapping[str, Sequence[Completion]]
) -> dict[str, Any]:
    """Judge with a judge that asks more than once for a verdict."""
    made = verdicts(
        judge,
        context.planned.models,
        context.engines,
        [(context.prompts[name], completions) for name, completions in groups.items()],
        context.planned.seed,
        Kept(context.folder),
        context.progress,
    )
    return _summary(len({j.call_id for j in made}), [j.status for j in made])


def _summary(calls: int, found: Sequence[str]) -> dict[str, Any]:
    statuses: dict[str, int] = {}
    for status in found:
        statuses[status] = statuses.get(status, 0) + 1
    valued = sum(count for status, count in statuses.items() if status in VALUED)
    counts = {"calls": calls, "judgements": len(found), "with_value": valued}
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
    folder.repair()
    models = {} if model is None else {"by": model}
    groups = [(pair.prompt, [pair.first, pair.second]) for pair in pairs]
    made = verdicts(judge, models, engines, groups, seed, Kept(folder), progress)
    progress.finish()
    # A pair may come twice in a file.
    return list({judgement.judgement_id: judgement for judgement in made}.values())


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


def _read_silent(
    judge: Plain, calls: Sequence[Call], done: AbstractSet[str]
) -> Iterator[list[Judgement]]:
    """Judgements of calls that ask no model."""
    left = [c for c in calls if c.call_id not in done]
    for start in range(0, len(left), RULE_BATCH):
        batch = left[start : start + RULE_BATCH]
        yield [j for call in batch for j in judge.read(call, None, f"program:{judge.id}")]


def ask_model(
    judge: Plain, model: Model | None, engines: Engines, calls: Iterable[Call], done: set[str]
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
    for results in results_of(engine, requests(), done):
        share = (time.monotonic() - began) / len(results)
        judged: list[Judgement] = []
        for result in results:
            seconds = result.seconds if engine.concurrent else share
            answered = Answered(result, annotator, None, seconds, result.cost)
            judged += read_answer(judge, open_calls.pop(result.request_id), answered)
        yield judged
        began = time.monotonic()
