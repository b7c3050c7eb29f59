"""Every judge is asked here: it says what to ask, this asks, stores and resumes.

Most judges need one answer per call; some write reasons first, and some (a jury, a meta-judge) ask
again after answers. What was answered is stored, so nothing is asked twice after a kill, and each
stage's requests are known in full before it begins, so its batches are the same on every run.

Answers that an earlier wording of a judge has got are taken over. A call's id covers all of the
judge that can change its answer: when one principle of several is reworded, the calls about the
others keep their ids, and what the earlier step's folder holds of them is copied.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, replace
from itertools import groupby, islice
from typing import Any, Protocol, TypeVar, cast

from rlaif.core.errors import ConfigError, StoreError
from rlaif.core.ids import IdSet
from rlaif.core.records import Judgement
from rlaif.core.rowindex import Index
from rlaif.core.store import StepFolder
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
from rlaif.judges.base import (
    Answered,
    Call,
    Case,
    Judge,
    Staged,
    calls_of,
    cases_beside,
    ending_request,
    is_grouped,
    is_staged,
    read_answer,
    roles_of,
    verdicts_of,
)
from rlaif.pipeline.steps.context import Engines, Progress, StepContext

SILENT_BATCH = 256
Group = Case
"""A prompt and the completions of it that are judged."""
Request = GenerateRequest | ScoreRequest | RewardRequest
KINDS = (RewardRequest, GenerateRequest, ScoreRequest)
Result = GenerateResult | ScoreResult | RewardResult
_RESULTS: dict[str, Callable[..., Result]] = {
    kind.__name__: kind for kind in (GenerateResult, ScoreResult, RewardResult)
}


class Log(Protocol):
    """Where records are kept, such as a step's folder."""

    def index(self, name: str, key: str) -> Index:
        """The committed rows of one record kind by what each has under `key`."""
        ...

    def append(self, name: str, records: Sequence[Any]) -> None:
        """Commit a batch, wholly or not at all."""
        ...


V = TypeVar("V")


class _Stored(Mapping[str, V]):
    """Lazy mapping from call id to its stored record, which `read(index, call_id)` decodes on
    access."""

    def __init__(self, log: Log, name: str, read: Callable[[Index, str], V]):
        self._log = log
        self._name = name
        self._read = read
        self._index = log.index(name, "call_id")
        self._index.grow()

    def append(self, records: Sequence[Any]) -> None:
        """Commit a batch."""
        self._log.append(self._name, records)
        self._index.grow()

    def __getitem__(self, call: str) -> V:
        if call not in self:
            raise KeyError(call)
        return self._read(self._index, call)

    def __contains__(self, call: object) -> bool:
        return isinstance(call, str) and self._index.count(call) > 0

    def __iter__(self) -> Iterator[str]:
        return self._index.keys()

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Kept:
    """The judgements, answers and reasons in a log, by call."""

    def __init__(self, log: Log):
        self.judgements: _Stored[list[Judgement]] = _Stored(
            log, "judgements", lambda index, call: index.records(call, Judgement)
        )
        self.answers: _Stored[Answered] = _Stored(log, "answers", _last_answered)
        self.reasons: _Stored[Answered] = _Stored(log, "reasons", _last_answered)
        self.carried: Carried | None = None

    def judged(self, judgements: Sequence[Judgement]) -> None:
        """Commit judgements."""
        self.judgements.append(judgements)

    def carry(self, folder: StepFolder, judge: Judge, earlier: Sequence[StepFolder]) -> None:
        """From now on take over what earlier steps have of the calls that are to be asked."""
        name = "answers" if is_staged(judge) else "judgements"
        rows: _Stored[Any] = self.answers if is_staged(judge) else self.judgements
        self.carried = Carried(folder, name, earlier, judge.judge_hash, rows.append, rows)

    def unasked(self, calls: Sequence[Call]) -> list[Call]:
        """The calls that are left to ask, or were asked here."""
        if self.carried is None:
            return list(calls)
        self.carried.take(calls)
        return list(self.carried.left(calls))

    def answered(self, name: str, batch: Iterable[tuple[Call, Answered]]) -> None:
        """Commit answers (`name` answers) or reasons, each with what its call was."""
        # What was asked stands beside the answer, so that it can be followed without the plan.
        rows = [_describe_call(call) | _answer_to_row(answered) for call, answered in batch]
        (self.answers if name == "answers" else self.reasons).append(rows)


def _last_answered(index: Index, call: str) -> Answered:
    return _answer_from_row(index.rows(call)[-1])


def _describe_call(call: Call) -> dict[str, Any]:
    """What a call asked: the answer can be followed to it."""
    return {
        "call_id": call.call_id,
        "role": call.role,
        "principle": call.principle,
        "sample_index": call.sample_index,
        "shown": [completion.completion_id for completion in call.shown],
        "template_hash": call.template_hash,
    }


def _answer_to_row(answered: Answered) -> dict[str, Any]:
    return asdict(answered) | {"kind": type(answered.answer).__name__}


def _answer_from_row(row: Mapping[str, Any]) -> Answered:
    kind = _RESULTS.get(row["kind"])
    answer = kind(**row["answer"]) if kind else None
    return Answered(answer, *(row[key] for key in ("annotator_id", "rationale", "latency", "cost")))


def verdicts(
    judge: Judge,
    models: Mapping[str, Model],
    engines: Engines,
    groups: Sequence[Group],
    seed: int,
    kept: Kept,
    progress: Progress | None = None,
) -> list[Judgement]:
    """All judgements of `judge` on `groups`, those in `kept` and new ones, which are kept too.

    `models` are the judge's models by role ("by" for most). Raises ConfigError when one is lacking
    or cannot do what the judge needs.
    """
    by_group = verdicts_by_group(judge, models, engines, groups, seed, kept, progress)
    return [judgement for own in by_group for judgement in own]


def verdicts_by_group(
    judge: Judge,
    models: Mapping[str, Model],
    engines: Engines,
    groups: Sequence[Group],
    seed: int,
    kept: Kept,
    progress: Progress | None = None,
) -> list[list[Judgement]]:
    """`verdicts`, each group's own: an answer that stands in two groups may be judged in both."""
    beside = cases_beside(groups) if is_grouped(judge) else [[] for _ in groups]
    calls = [calls_of(judge, *both, seed) for both in zip(groups, beside, strict=True)]
    asker = _Asker(judge, models, engines, kept, progress)
    if is_staged(judge):
        return _judge_staged(judge, asker, calls, seed)
    every = [call for group in calls for call in group]
    for batch in asker.ask(kept.unasked(every), kept.judgements.keys()):
        kept.judged([j for call, answered in batch for j in read_answer(judge, call, answered)])
    return [[j for c in own for j in kept.judgements.get(c.call_id, [])] for own in calls]


def _judge_staged(
    judge: Staged, asker: _Asker, calls: Sequence[list[Call]], seed: int
) -> list[list[Judgement]]:
    kept = asker.kept
    made = [list(group) for group in calls]
    new = [call for group in made for call in group]
    while new:
        for batch in asker.ask(kept.unasked(new), kept.answers.keys()):
            kept.answered("answers", [(c, a) for c, a in batch if a is not None])
        further = [judge.follow(group, kept.answers, seed) for group in made]
        for group, more in zip(made, further, strict=True):
            group += more
        new = [call for more in further for call in more]
    concluded = [verdicts_of(judge, group, kept.answers) for group in made]
    # A rerun concludes everything again: only what is not stored is new.
    fresh = {
        j.judgement_id: j
        for own in concluded
        for j in own
        if j.judgement_id not in {k.judgement_id for k in kept.judgements.get(j.call_id, [])}
    }
    kept.judged(list(fresh.values()))
    return concluded


class _Asker:
    """Asks one judge's models. Batches come as (call, its answer or None where none is asked)."""

    def __init__(
        self,
        judge: Judge,
        models: Mapping[str, Model],
        engines: Engines,
        kept: Kept,
        progress: Progress | None,
    ):
        self.judge = judge
        self.models = models
        self.engines = engines
        self.kept = kept
        self.progress = progress

    def ask(
        self, calls: Sequence[Call], done: AbstractSet[str]
    ) -> Iterator[list[tuple[Call, Answered | None]]]:
        """What is not in `done`, a whole batch at a time. A call that comes twice is asked once."""
        calls = list({call.call_id: call for call in calls}.values())
        # `done` may be a view of a whole file: only its part of these calls is held.
        done = {call.call_id for call in calls if call.call_id in done}
        self._ask_reasons([c for c in calls if c.then is not None], done)
        self._start_progress("judgements", [c.call_id for c in calls], done)
        silent = [c for c in calls if c.request is None and c.call_id not in done]
        for start in range(0, len(silent), SILENT_BATCH):
            batch = silent[start : start + SILENT_BATCH]
            yield [(call, None) for call in batch]
            self._advance_progress(len(batch))
        asked = {c.call_id: c for c in calls if c.request is not None}
        stuck = [c for i, c in asked.items() if self._request_of(c) is None and i not in done]
        if stuck:
            # Without reasons there is nothing to ask further: the calls failed.
            yield [(c, self.kept.reasons[c.call_id]) for c in stuck]
            self._advance_progress(len(stuck))
        # Those that are done too: an engine in this process lays out its batches from all of them.
        pending = {i: r for i, c in asked.items() if (r := self._request_of(c)) is not None}
        for batch_of_answers in self._ask_engines(asked, pending, done):
            yield [
                (asked[name], replace(answered, rationale=self._rationale_of(asked[name])))
                for name, answered in batch_of_answers.items()
            ]
            self._advance_progress(len(batch_of_answers))

    def _request_of(self, call: Call) -> Request | None:
        """What is asked for a verdict: the call's request, or its second turn after reasons."""
        if call.then is None:
            return call.request
        reasons = self.kept.reasons[call.call_id].answer
        assert isinstance(reasons, GenerateResult)
        return ending_request(call, reasons)

    def _rationale_of(self, call: Call) -> str | None:
        if call.then is None:
            return None
        reasons = self.kept.reasons[call.call_id]
        assert isinstance(reasons.answer, GenerateResult)
        return "\n\n".join(t for t in (reasons.thought, reasons.answer.text) if t)

    def _ask_reasons(self, calls: Sequence[Call], done: AbstractSet[str]) -> None:
        """Have the reasons written that are not kept; none where every verdict is there."""
        if not calls:
            return
        asked = {c.call_id: c for c in calls}
        written = {name for name in asked if name in self.kept.reasons}
        self._start_progress("reasons", list(asked), written | done)
        requests = {i: c.request for i, c in asked.items() if c.request is not None}
        for batch in self._ask_engines(asked, requests, written):
            self.kept.answered("reasons", [(asked[name], a) for name, a in batch.items()])
            self._advance_progress(len(batch))

    def _ask_engines(
        self, calls: Mapping[str, Call], requests: Mapping[str, Request], done: Iterable[str]
    ) -> Iterator[dict[str, Answered]]:
        """Batches of answers by call. Each role's engine sees its full set of requests."""
        done = set(done)
        roles: dict[str, list[Request]] = defaultdict(list)
        for name, request in requests.items():
            roles[calls[name].role].append(request)
        for role, wanted in roles.items():
            # Nothing is loaded for a role whose answers are all there.
            if all(request.request_id in done for request in wanted):
                continue
            engine, annotator = asked_engine(self.judge, role, self.models, self.engines)
            yield from answers_of(engine, annotator, wanted, done)

    def _start_progress(self, name: str, ids: Sequence[str], done: AbstractSet[str]) -> None:
        if self.progress is not None:
            self.progress.start(name, len(ids), len(done & set(ids)))

    def _advance_progress(self, count: int) -> None:
        if self.progress is not None:
            self.progress.advance(count, note=self.engines.account.note())


def asked_engine(
    judge: Judge, role: str, models: Mapping[str, Model], engines: Engines
) -> tuple[Engine, str]:
    """The engine that answers a judge in one role, and the annotator id of its answers.

    Raises ConfigError where no model has the role, or it cannot do what the judge needs.
    """
    model = models.get(role)
    if model is None:
        raise ConfigError(f"judge {judge.id} asks a model, and none was named")
    engine = engines.get(model)
    lacking = sorted(roles_of(judge).get(role, frozenset()) - engine.capabilities)
    if lacking:
        raise ConfigError(f"judge {judge.id} needs {lacking}, which model {model.label!r} lacks")
    return engine, f"{model.label}:{engine.weights_hash}"


def answers_of(
    engine: Engine, annotator: str, requests: Iterable[Request], done: AbstractSet[str]
) -> Iterator[dict[str, Answered]]:
    """The engine's batches as answers by request. An engine in this process has computed a batch
    together, and each answer counts for its share of the seconds."""
    began = time.monotonic()
    for batch in _results_of(engine, requests, done):
        share = (time.monotonic() - began) / len(batch)
        yield {
            r.request_id: Answered(
                r, annotator, None, r.seconds if engine.concurrent else share, r.cost
            )
            for r in batch
        }
        began = time.monotonic()


def _results_of(
    engine: Engine, requests: Iterable[Request], done: AbstractSet[str]
) -> Iterator[list[GenerateResult] | list[ScoreResult] | list[RewardResult]]:
    """The engine's batches of answers to requests of any kinds that are not wholly in `done`."""
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


BATCH = 256
MARKS = "carried"


class Source(Protocol):
    """Where answers were kept."""

    def index(self, name: str, key: str) -> Index:
        """The committed rows of one record kind by what each has under `key`."""
        ...


def earlier_steps(context: StepContext) -> list[StepFolder]:
    """The finished steps in which the same models were asked by a judge of this id about the same
    answers. None for a step that began without: what is asked in one batch is known when it begins.
    """
    folder = context.folder
    names = ("judgements", "answers", "reasons")
    began = any(folder.path.joinpath(f"{name}.jsonl").exists() for name in names)
    kin = context.planned.options.get("kin")
    if kin is None or (began and not folder.count(MARKS)):
        return []
    found = []
    for path in sorted(folder.path.parent.glob("*/done.json")):
        other = StepFolder(path.parent)
        try:
            marker = other.done()
        except StoreError:
            # A damaged step that is not part of this plan is no reason to stop.
            continue
        if marker is not None and marker.get("kin") == kin:
            found.append(other)
    return found


class Carried:
    """The calls of a step whose rows were copied: `calls` are their ids.

    They are marked before the rows are there, so that after a kill the rest is asked in the same
    batches. `append` keeps rows, `kept` knows the calls that have some, and `name` is their file.
    """

    def __init__(
        self,
        folder: StepFolder,
        name: str,
        earlier: Sequence[Source],
        judge_hash: str,
        append: Callable[[list[dict[str, Any]]], None],
        kept: Container[str],
    ):
        self._folder = folder
        self._append = append
        self._kept = kept
        # A copied verdict counts as this wording's.
        self._changed = {"judge_hash": judge_hash} if name == "judgements" else {}
        self._indexes = [step.index(name, "call_id") for step in earlier]
        for index in self._indexes:
            index.grow()
        self._marked = IdSet(row["call_id"] for row in folder.rows(MARKS))
        # A mark without rows is of a kill in between: `take` copies these.
        self.calls = IdSet(call for call in self._marked if call in kept)

    def take(self, calls: Iterable[Call]) -> None:
        """Copy what is there of calls that have no rows yet."""
        if not self._indexes:
            return
        asked = dict.fromkeys(c.call_id for c in calls if c.request is not None)
        new = iter([name for name in asked if name not in self._kept and self._find_source(name)])
        while batch := list(islice(new, BATCH)):
            # Marked first: rows without a mark would pass for answers that were asked here.
            marks = [{"call_id": name} for name in batch if name not in self._marked]
            self._folder.append(MARKS, marks)
            self._append([row | self._changed for name in batch for row in self._find_rows(name)])
            self.calls.update(batch)

    def _find_source(self, call: str) -> Index | None:
        return next((index for index in self._indexes if index.count(call)), None)

    def _find_rows(self, call: str) -> list[dict[str, Any]]:
        source = self._find_source(call)
        return source.rows(call) if source is not None else []

    def left(self, calls: Iterable[Call]) -> Iterable[Call]:
        """The calls that were not copied."""
        return (call for call in calls if call.call_id not in self.calls)
