"""judge: a judge's judgements of the completions so far. Judges that ask once for a verdict are
asked here, calls made as they are asked; the others in `asking`.

Completions come from steps that are done or still sampling.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from rlaif.core.chat import CUT, has_more
from rlaif.core.errors import StoreError
from rlaif.core.ids import IdSet, as_ids, unite_ids
from rlaif.core.integrity import Unordered
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import VALUED, Completion, Judgement
from rlaif.core.rowindex import Index
from rlaif.core.store import StepFolder
from rlaif.engines.base import Model
from rlaif.judges.base import (
    LIMIT,
    Call,
    Case,
    Judge,
    Plain,
    calls_of,
    compares_judgements,
    is_grouped,
    is_staged,
    read_answer,
    roles_of,
)
from rlaif.judges.questions import answer_notes
from rlaif.pipeline.plan.base import (
    Known,
    PlanInputs,
    Planned,
    Size,
    Walk,
    count_judge_calls,
    group_prompts,
)
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.asking import (
    SILENT_BATCH,
    Carried,
    Kept,
    Request,
    answers_of,
    asked_engine,
    earlier_steps,
    verdicts,
)
from rlaif.pipeline.steps.context import (
    Engines,
    Progress,
    StepContext,
    keep_commonest,
    lost_by,
    lost_notes,
    refuse_all_failed,
)
from rlaif.pipeline.steps.judge_judgements import (
    JudgementGroups,
    plan_comparisons,
    size_comparisons,
)

VERSION = 5
MAKES = "judgements"
SECONDS_PER_UNIT = 0.15

TURN_PROMPTS = 256
"""Prompts that a server is asked about at once by a judge that asks in turns."""
HELD_CALLS = 4096
"""Calls that are held between being counted and being asked; each has its prompt's text."""
CONTENT = ("judgement_id", "status", "score", "prob_first")
"""What tells a verdict from another one on the same question."""
_CUTS = {"cut_while_thinking": CUT, "cut_at_limit": LIMIT}


def plan(walk: Walk, index: int, step: Any) -> None:
    """One judge's verdicts on the latest completions, or on those that `uses` names; of a judge of
    judgements on these."""
    if compares_judgements(walk.inputs.judges[step.id]):
        plan_comparisons(walk, index, step)
        return
    sources = walk.used(index, step.uses, walk.completions, ("sample", "revise", "filter", "load"))
    if not sources:
        raise walk.inputs.fail(index, f"judge {step.id!r} has no completions: sample first")
    planned = judged(walk, step, sources, walk.asked(index, step), step.id)
    _refuse_alone(walk, index, step.id, planned)
    walk.judgements[step.id] = planned
    walk.by_id[step.id, walk.round] = planned


def _refuse_alone(walk: Walk, index: int, judge: str, planned: Planned) -> None:
    """Raise ConfigError where a judge that marks groups of prompts is asked about single ones."""
    if not is_grouped(planned.judges[judge]):
        return
    every = walk.inputs.prompts_by_id
    units = group_prompts(every[name] for name in planned.prompts)
    alone = sum(len(unit) == 1 for unit in units)
    if alone:
        raise walk.inputs.fail(
            index,
            f"judge {judge!r} marks the answers to a group of prompts together, and {alone} of "
            f"{len(planned.prompts)} prompts stand alone: sample those of a `questions` step with "
            "`orders: both`",
        )


def judged(
    walk: Walk,
    step: Any,
    sources: list[Planned],
    models: dict[str, Model],
    name: str,
    limit: int | None = None,
    judge: Judge | None = None,
) -> Planned:
    """The verdicts of `step`'s judge on `sources`, on the first `limit` prompts or on all. `judge`:
    as it is built in place of this arm's."""
    judge = judge or walk.inputs.judges[step.id]
    # Loaded completions bring their own prompts: then no limit is known here, and all count.
    known = all(s.prompts for s in sources)
    prompts = unite_ids(s.prompts for s in sources) if known else ()
    prompts = prompts if limit is None else prompts[:limit]
    parts = [s.hash for s in sources]
    identities = {role: model.identity() for role, model in sorted(models.items())}
    # A judge of one model is known by that model alone.
    identity = identities.get("by") if len(identities) < 2 else identities
    facts = walk.facts(prompts if known else None)
    about = (identity, parts, prompts, facts, walk.seed)
    return walk.add(
        Planned(
            step_hash("judge", judge.judge_hash, *about),
            "judge",
            name,
            walk.seed,
            walk.round,
            step,
            inputs={f"completions/{i}": s.hash for i, s in enumerate(sources)},
            models=models,
            prompts=prompts,
            # The steps of other wordings of the judge: what they asked in the same words stands.
            options={"kin": step_hash("judge", step.id, *about)},
            judges={step.id: judge},
        )
    )


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """The calls of the judge on the answers that there may be."""
    if planned.compares_judgements:
        return size_comparisons(inputs, planned, known)
    answers = known.records_read(planned, "completions")
    if planned.prompts:
        # A drift judgement rescores the answers to some of its source's prompts only.
        widest = max(len(p) for h, p in known.prompts.items() if h in planned.inputs.values())
        answers = answers * min(len(planned.prompts), widest) // widest
    count = len(planned.prompts) or len(inputs.prompts_by_id)
    judge = planned.judges[planned.step.id]
    per_prompt = -(-answers // max(count, 1))
    asked = count_judge_calls(inputs, planned, judge, planned.models, count, per_prompt)
    return Size(asked.units, asked.calls, asked.tokens, (asked,))


def run(context: StepContext) -> dict[str, Any]:
    """Judge what is still missing; whole batches are committed as they come. Completions that are
    still being sampled are judged as soon as a prompt has all of its own."""
    judging = _Judging(context, Groups(context))
    for wave in judging.groups.waves():
        judging.work(wave)
    lost = dict(judging.lost)
    summary = _summarise_judgements(context.planned.id, judging.judge.id, context.folder, lost)
    if summary["counts"]["calls"] > judging.asked:
        raise StoreError(
            f"{context.folder.path}: it has verdicts on answers that are no longer there, since a "
            f"step before it was removed and made again. {context.folder.advice}"
        )
    # So that another wording of the judge finds what it need not ask again.
    kin = context.planned.options.get("kin")
    return summary if kin is None else summary | {"kin": kin}


def _summarise_judgements(
    name: str, judge: str, folder: StepFolder, lost: dict[str, int]
) -> dict[str, Any]:
    """What is in the folder, and what was `lost` of the conversations. Raises EngineError where
    every judgement failed."""
    calls = IdSet()
    statuses: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    masses = array("d")
    content = Unordered()
    for row in folder.rows("judgements"):
        calls.add(row["call_id"])
        statuses[row["status"]] += 1
        if row["status"] == "failed":
            failed[row.get("error") or "no reason was given"] += 1
        if row.get("error"):
            errors[row["error"]] += 1
        if row["label_mass"] is not None:
            masses.append(row["label_mass"])
        # Servers answer in any order, which must not change the digest.
        content.add(*(row[key] for key in CONTENT))
    who = f"of judge {name}"
    refuse_all_failed(f"verdicts {who}", f"calls {who}", statuses.total(), failed, folder.path)
    valued = sum(count for status, count in statuses.items() if status in VALUED)
    counts = {"calls": len(calls), "judgements": statuses.total(), "with_value": valued}
    cut = {name: errors[why] for name, why in _CUTS.items() if errors[why]}
    return {
        "counts": counts | cut | lost,
        "statuses": dict(statuses),
        "errors": keep_commonest(errors),
        "notes": [*answer_notes(judge, statuses.total(), errors, masses), *lost_notes(name, lost)],
        "digest": content.digest(),
    }


class _Judging:
    """A judge step at work, wave after wave of prompts."""

    def __init__(self, context: StepContext, groups: Groups):
        self.context = context
        self.groups = groups
        self.judge = context.judge()
        self.done = IdSet(row["call_id"] for row in context.folder.rows("judgements"))
        self.earlier = earlier_steps(context)
        self._kept: Kept | None = None
        self._carried: Carried | None = None
        self._began = False
        self._reasons: bool | None = None
        self.lost: Counter[str] = Counter()
        self.asked = 0
        """Calls that lead to verdicts on the answers that are there."""

    def work(self, wave: Collection[str]) -> None:
        """Judge all completions of the prompts in `wave`."""
        judge = self.judge
        self._count_lost(wave)
        if is_staged(judge) or self._writes_reasons(wave):
            self._ask_in_turns(wave)
            return
        self._ask_once(judge, wave)

    def _writes_reasons(self, wave: Iterable[str]) -> bool:
        """Whether the judge's calls have a second turn. All that ask a model are alike."""
        if self._reasons is None and roles_of(self.judge):
            first = next((c for c in self._make_calls(wave) if c.request is not None), None)
            self._reasons = None if first is None else first.then is not None
        return bool(self._reasons)

    def _count_lost(self, wave: Iterable[str]) -> None:
        """Judges' templates show tool calls; reward models have templates of their own."""
        if "reward" not in roles_of(self.judge).get("by", ()):
            return
        groups = map(self.groups.read, wave)
        whole = ([*p.messages, *c.messages] for p, answers in groups for c in answers)
        found = [messages for messages in whole if any(map(has_more, messages))]
        if found:
            engine = self.context.engines.get(self.context.planned.models["by"])
            self.lost += Counter(lost_by(engine, found))

    def _ask_once(self, judge: Plain, wave: Iterable[str]) -> None:
        """One question, one verdict. Calls are counted, then asked: where they are too many to hold
        they are made again."""
        folder = self.context.folder
        # One for all waves, since it knows what earlier waves have copied.
        if self._carried is None:
            self._carried = Carried(
                folder,
                "judgements",
                self.earlier,
                judge.judge_hash,
                lambda rows: folder.append("judgements", rows),
                self.done,
            )
        carried = self._carried
        total = known = 0
        silent = asking = False
        held: list[Call] | None = []
        for prompt_id in wave:
            own = list(self._make_calls([prompt_id]))
            calls = {call.call_id: call for call in own}
            if held is not None:
                held = [*held, *own] if len(held) + len(own) <= HELD_CALLS else None
            carried.take(calls.values())
            self.done.update(name for name in calls if name in carried.calls)
            total += len(calls)
            self.asked += len(calls)
            known += sum(name in self.done for name in calls)
            new = [call for name, call in calls.items() if name not in self.done]
            silent = silent or any(call.request is None for call in new)
            asking = asking or any(call.request is not None for call in new)
        self._expect_units("judgements", total, known)
        parts = []
        if silent:
            made = self._make_calls(wave) if held is None else held
            parts.append(_read_silent(judge, made, self.done))
        if asking:
            model, engines = self.context.planned.models.get("by"), self.context.engines
            left = carried.left(self._make_calls(wave) if held is None else held)
            parts.append(ask_model(judge, model, engines, left, self.done))
        for judgements in chain.from_iterable(parts):
            self.context.folder.append("judgements", judgements)
            # One call may give several judgements.
            self._advance_progress(len({j.call_id for j in judgements}))

    def _ask_in_turns(self, wave: Collection[str]) -> None:
        """Several questions, one verdict. Servers are asked about some prompts after the others;
        a model in this process sees all requests of a stage at once, which lays out its batches."""
        context, models = self.context, self.context.planned.models
        remote = all(context.engines.get(model).concurrent for model in models.values())
        size = TURN_PROMPTS if remote else len(wave)
        if self._kept is None:
            self._kept = Kept(context.folder)
            self._kept.carry(context.folder, self.judge, self.earlier)
        if remote:
            self._expect_units("prompts", len(wave), 0)
        names = iter(wave)
        while part := [self.groups.read(name) for name in islice(names, size)]:
            progress = None if remote else context.progress
            asked = (self.judge, models, context.engines, part, context.planned.seed)
            made = verdicts(*asked, self._kept, progress)
            self.asked += len({judgement.call_id for judgement in made})
            if remote:
                self._advance_progress(len(part))

    def _make_calls(self, wave: Iterable[str]) -> Iterator[Call]:
        for prompt_id in wave:
            beside = self.groups.read_beside(prompt_id) if is_grouped(self.judge) else []
            for found in self.groups.list_parts(prompt_id):
                yield from calls_of(self.judge, found, beside, self.context.planned.seed)

    def _expect_units(self, what: str, count: int, known: int) -> None:
        if self._began:
            self.context.progress.extend(count)
            self._advance_progress(known)
        else:
            self.context.progress.start(what, count, known)
        self._began = True

    def _advance_progress(self, count: int) -> None:
        self.context.progress.advance(count, note=self.context.engines.account.note())


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


def _read_silent(
    judge: Plain, calls: Iterable[Call], done: AbstractSet[str]
) -> Iterator[list[Judgement]]:
    """Judgements of calls that ask no model."""
    left = (c for c in calls if c.request is None and c.call_id not in done)
    while batch := list(islice(left, SILENT_BATCH)):
        yield [j for call in batch for j in judge.read(call, None, f"program:{judge.id}")]


def ask_model(
    judge: Plain,
    model: Model | None,
    engines: Engines,
    calls: Iterable[Call],
    done: AbstractSet[str],
) -> Iterator[list[Judgement]]:
    """Judgements of the calls that have a request. A concurrent engine draws them as it goes, and
    none is held longer than its answer takes."""
    models = {} if model is None else {"by": model}
    engine, annotator = asked_engine(judge, "by", models, engines)
    open_calls: dict[str, Call] = {}

    def open_requests() -> Iterator[Request]:
        for call in calls:
            # An engine in this process lays out its batches from all calls, done or not.
            if call.request is not None and not (engine.concurrent and call.call_id in done):
                open_calls[call.call_id] = call
                yield call.request

    for batch in answers_of(engine, annotator, open_requests(), done):
        yield [
            judgement
            for name, answered in batch.items()
            for judgement in read_answer(judge, open_calls.pop(name), answered)
        ]


@dataclass
class _Source:
    """One input. While it is written, `sampled` are the prompts that will have `n` completions
    each; None once it is done."""

    folder: StepFolder
    index: Index
    sampled: Container[str] | None
    n: int

    def grow(self) -> Iterator[str]:
        """The prompts of new completions, with repeats. What is done is seen to be done before it
        is read, so that nothing can come after it."""
        if self.sampled is not None and self.folder.done() is not None:
            self.sampled = None
        return self.index.grow()

    def complete(self, prompt_id: str) -> bool:
        """Whether all that this input will ever have of a prompt is there."""
        if self.sampled is None or prompt_id not in self.sampled:
            return True
        return self.index.count(prompt_id) >= self.n


class Groups:
    """A step's completions by prompt, read as they are asked for."""

    def __init__(self, context: StepContext):
        self.context = context
        self._wanted = as_ids(context.planned.prompts)
        wanted = self._wanted or context.prompts
        given = map(context.prompts.get, wanted)
        # Those that stand alone, which may be many, need no group.
        units = group_prompts(prompt for prompt in given if prompt is not None and prompt.group)
        self._beside = {
            name: [other for other in unit if other != name]
            for unit in units
            if len(unit) > 1
            for name in unit
        }
        compared = context.planned.compares_judgements
        self._judgements = JudgementGroups(context) if compared else None
        self._sources = [
            self._open_source(digest) for digest in context.inputs_under("completions")
        ]

    def _open_source(self, digest: str) -> _Source:
        folder = self.context.store.step(digest)
        live_samples = self.context.live_samples
        sampling = live_samples.steps.get(digest) if live_samples is not None else None
        index = folder.index("completions", "prompt_id")
        if sampling is None:
            return _Source(folder, index, None, 0)
        return _Source(folder, index, as_ids(sampling.prompts), sampling.step.n)

    def waves(self) -> Iterator[Collection[str]]:
        """Yield batches of prompts that have all their completions, each in the order of ids, until
        sampling ends; each prompt once."""
        early = IdSet()
        final = False
        while not final:
            # All sources grow before one of them is looked at.
            new = chain(early, *[source.grow() for source in self._sources])
            # After growing: what was done by then has nothing more to give.
            final = all(source.sampled is None for source in self._sources)
            ready, early = IdSet(), IdSet()
            for name in new:
                if not self._is_complete(name):
                    early.add(name)
                elif not self._wanted or name in self._wanted:
                    ready.add(name)
            if ready:
                self.context.refuse_strangers(ready)
                yield ready
            elif not final and self.context.live_samples is not None:
                self.context.live_samples.wait()

    def _is_complete(self, prompt_id: str) -> bool:
        """Whether all completions are there of a prompt and of those of its group."""
        group = [prompt_id, *self._beside.get(prompt_id, ())]
        return all(source.complete(name) for source in self._sources for name in group)

    def read_beside(self, prompt_id: str) -> list[Case]:
        """The other prompts of a prompt's group with their completions."""
        return [self.read(name) for name in self._beside.get(prompt_id, ())]

    def read(self, prompt_id: str) -> Case:
        """A prompt and its completions, in the order of the inputs."""
        found = [c for s in self._sources for c in s.index.records(prompt_id, Completion)]
        return self.context.prompts[prompt_id], found

    def list_parts(self, prompt_id: str) -> list[Case]:
        """What is judged together: a prompt's completions, or the judgements of each of them."""
        whole = self.read(prompt_id)
        return [whole] if self._judgements is None else self._judgements.list_parts(*whole)
