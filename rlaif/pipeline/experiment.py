"""Run an experiment: read it, plan it, run what is missing, and say what happened.

Judges that servers answer run concurrently with what this process computes: `split_group` says
which steps do, and `run_both` runs them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rlaif.config.models import REMOTE, ModelSpec
from rlaif.constitution.code_rule import code_allowed
from rlaif.core.errors import GateStopped, StoreError
from rlaif.core.finished import find_stale, stale_in_words
from rlaif.core.records import Prompt, RoundRecord, content_hash
from rlaif.core.store import Store, explain_os_errors, name_step
from rlaif.data.prompt_table import PromptsById
from rlaif.engines.base import Engine
from rlaif.engines.build import EnginePool, whole
from rlaif.engines.model_folders import COPIES, resolve
from rlaif.engines.remote.meter import Account, kept_meters
from rlaif.pipeline.choice import find_unsaid
from rlaif.pipeline.dataset import Built, build_dataset
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.manifest import write_manifest, write_rounds
from rlaif.pipeline.plan.base import PlanInputs, Planned
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.remarks import list_remarks, refuse_remarks
from rlaif.pipeline.runs import load_run
from rlaif.pipeline.steps import step_module
from rlaif.pipeline.steps.average import MEMBER
from rlaif.pipeline.steps.choose import ROUND, has_stopped, is_needless, round_means
from rlaif.pipeline.steps.context import CheckedProgress, LiveSamples, Progress, StepContext
from rlaif.pipeline.steps.questions import read_questions

if TYPE_CHECKING:
    from rlaif.train.loop import TrainJob, TrainOutcome


class StepProgress(Progress, Protocol):
    """Progress that also hears which step begins."""

    def begin_step(self, title: str) -> None:
        """A step begins."""
        ...

    def beside(self) -> StepProgress:
        """Progress of a step that runs at the same time."""
        ...


class Executor(Protocol):
    """Other machines for a run's models and trainings. They compute what this process would: they
    are in no plan, and a run may go on without them."""

    def load(
        self, spec: ModelSpec, folder: str | Path | None, name: str, account: Account | None = None
    ) -> Engine:
        """See `rlaif.engines.build.load_engine`."""
        ...

    def train(self, job: TrainJob[Any]) -> TrainOutcome:
        """Train on the job's preferences and texts."""
        ...


@dataclass(frozen=True)
class RunResult:
    """What `run_experiment` did: how many steps ran, how many were found finished, and the dataset
    that the experiment asks for."""

    out: Path
    ran: int
    reused: int
    rounds: list[RoundRecord]
    dataset: Built | None = None
    unsaid: str | None = None
    """Why that dataset was not written: what the user has to say first (see `rlaif build`)."""


def run_experiment(
    path: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    progress: StepProgress | None = None,
    say: Callable[[str], None] = lambda text: None,
    profile: str | None = None,
    strict: bool = False,
    executor: Executor | None = None,
) -> RunResult:
    """Run an experiment, by one of its profiles or as it stands, into the run folder `out`, or go
    on with it. With `strict`, what it would make for nothing is refused. Models compute in
    this process, or where the `executor` has them.

    Finished steps are found by the hash of their inputs and not run again. Raises RlaifError.
    """
    from rlaif.core.progress import QuietProgress

    path, out = Path(path), Path(out)
    progress = progress or QuietProgress()
    store = Store(out)
    # Before the lock, which is a file in this folder.
    store.prepare()
    load = None if executor is None else executor.load
    with store.locked():
        inputs = prepare(path, overrides, True, profile, out, progress, load)
        plan = make_plan(inputs)
        if strict:
            refuse_remarks(inputs, plan)
        missing = unfinished(plan, store)
        _check_space(store, plan, missing)
        write_manifest(store, inputs, plan)
        if inputs.prompts.duplicates:
            say(f"{inputs.prompts.duplicates} duplicate prompts left out")
        for note in [*inputs.notes, *list_remarks(inputs, plan)]:
            say(note)
        _run_plan(inputs, plan, missing, store, executor, progress)
        shutil.rmtree(store.root / COPIES, ignore_errors=True)
        rounds = write_rounds(inputs, plan, store)
        built, unsaid = _build_wanted(inputs.experiment, out)
        idle = find_stopped(plan, store)
    left = len(plan) - len(missing | idle)
    return RunResult(out, len(missing - idle), left, rounds, built, unsaid)


def _run_plan(
    inputs: PlanInputs,
    plan: Sequence[Planned],
    missing: set[str],
    store: Store,
    executor: Executor | None,
    progress: StepProgress,
) -> None:
    """Run the steps that are missing, in order, with one pool of engines for all."""
    arms = [inputs, *inputs.arms.values()]
    allowed = any(arm.experiment.allow_code for arm in arms)
    load = None if executor is None else executor.load
    pool = EnginePool(store, budget=inputs.experiment.budget, load=load)
    try:
        runner = _Runner(inputs, store, {}, executor)
        for planned in plan:
            if planned.kind == "questions":
                runner.posed.update(read_questions(store, planned.hash))
        reused = set[str]().union(*(p.sources for p in plan if p.hash not in missing))
        refuse_stale(plan, store)
        for steps in overlap_groups(plan):
            # Known only now: whether the rounds before this one still rose.
            idle = find_stopped(plan, store)
            with code_allowed(allowed):
                runner.run([p for p in steps if p.hash in missing - idle], pool, progress)
            # Made anew, a step may have other records than those that finished steps have read.
            if any(p.hash in missing & reused for p in steps):
                refuse_stale(plan, store)
            last = steps[-1]
            if last.hash in idle:
                continue
            if last.kind == "evaluate":
                _check_gate(inputs.experiment, write_rounds(inputs, plan, store), last)
            if last.makes_model:
                _drop_masters(inputs.experiment, plan, last, store)
    finally:
        progress.finish()
        pool.close()


def _build_wanted(experiment: Experiment, out: Path) -> tuple[Built | None, str | None]:
    """The dataset that the experiment asks for, or what has to be said before it can be built."""
    if experiment.dataset is None:
        return None, None
    run = load_run(out)
    unsaid = find_unsaid(run, experiment.dataset)
    if unsaid is not None:
        return None, unsaid
    with name_step("dataset", out / "dataset"):
        return build_dataset(run, experiment.dataset, out / "dataset"), None


FROM_MASTERS = ("start", "reference", "teacher", "last")
"""The roles of models whose fp32 masters a step reads, where they have some."""


def _makes_masters(planned: Planned) -> bool:
    """Whether a step's model has fp32 masters; an average has those that its members have."""
    return bool(planned.options.get("masters", planned.step.makes_masters))


def unfinished(plan: Sequence[Planned], store: Store) -> set[str]:
    """The hashes of the steps that must run.

    A finished train step runs again when an unfinished one starts from its fp32 masters and these
    were not kept: starting from the bf16 export would give other weights. A head that was fitted on
    a body leaves it as it is and has none. So it does when any unfinished step needs its model and
    that was removed.
    """
    fitted = {p.hash for p in plan if p.makes_model and not _makes_masters(p)}
    idle = find_stopped(plan, store)
    missing = {p.hash for p in plan if store.step(p.hash).done() is None} - idle
    # From the end, so that a step that comes to be missing is itself looked at in its turn.
    for planned in reversed(plan):
        if planned.hash not in missing:
            continue
        used = {m.train_hash for m in planned.models.values() if m.train_hash is not None}
        missing |= {name for name in used if not store.model_path(name).is_dir()} - idle
        if not planned.makes_model:
            continue
        for role, model in planned.models.items():
            starts = role in FROM_MASTERS or role.startswith((ROUND, MEMBER))
            if not starts or model.train_hash is None or model.train_hash in fitted | idle:
                continue
            if not (store.model_path(model.train_hash) / "masters").is_dir():
                missing.add(model.train_hash)
    return missing


def refuse_stale(plan: Sequence[Planned], store: Store) -> None:
    """Raise StoreError where finished steps were made from other records than the steps that they
    read have now. What was paid for is the user's to delete."""
    markers = {p.hash: m for p in plan if (m := store.step(p.hash).done()) is not None}
    found = find_stale(markers)
    if found:
        raise StoreError(stale_in_words([store.step(p.hash).path for p in plan if p.hash in found]))


@dataclass(frozen=True)
class _Runner:
    """Runs planned steps; `posed` are the prompts that steps have made, by id."""

    inputs: PlanInputs
    store: Store
    posed: dict[str, Prompt]
    executor: Executor | None

    @property
    def prompts(self) -> Mapping[str, Prompt]:
        """All prompts of the experiment and of its steps, by id."""
        return PromptsById([self.inputs.prompts_by_id, self.posed])

    def run(self, steps: Sequence[Planned], pool: EnginePool, progress: StepProgress) -> None:
        """Run steps in their order; what servers judge runs beside what this process computes."""
        local, remote = split_group(steps)
        if not remote:
            for planned in local:
                self._run_step(planned, pool, progress, progress)
            return
        # The judges see answers as they are committed, of steps that are not done yet.
        live_samples = LiveSamples({p.hash: p for p in local if p.kind == "sample"})
        beside, shown = pool.beside(), progress.beside()

        def run_local(check: Callable[[], None]) -> None:
            for planned in local:
                self._run_step(planned, pool, progress, CheckedProgress(progress, check))

        def run_remote() -> None:
            for planned in remote:
                self._run_step(planned, beside, shown, shown, live_samples)

        def end_remote() -> None:
            # It may be waiting for samples or for a server: both waits end.
            live_samples.stopped.set()
            beside.close()

        try:
            run_both(run_local, run_remote, end_remote)
        finally:
            shown.finish()

    def _make_title(self, planned: Planned) -> str:
        experiment = self.inputs.experiment
        seed = f"seed {planned.seed}, " if len(experiment.all_seeds) > 1 else ""
        some = len(planned.arms) < len(experiment.arm_names)
        arms = f"{', '.join(planned.arms)}, " if some else ""
        return f"[{seed}{arms}round {planned.round}] {planned.id}"

    def _run_step(
        self,
        planned: Planned,
        pool: EnginePool,
        shown: StepProgress,
        progress: Progress,
        live_samples: LiveSamples | None = None,
    ) -> None:
        """Run one step into its folder. `shown` hears which step begins and ends, and the step
        itself is given `progress`."""
        shown.begin_step(self._make_title(planned))
        folder = self.store.step(planned.hash)
        began = time.monotonic()
        with name_step(self._make_title(planned), folder.path), explain_os_errors(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
            # Before anything is read from it: what a kill tore must not count.
            folder.repair()
            # What one arm has of its own is not shared with another.
            inputs = self.inputs.arms.get(planned.arms[0], self.inputs)
            context = StepContext(
                planned,
                folder,
                self.store,
                inputs,
                self.prompts,
                pool,
                progress,
                live_samples,
                None if self.executor is None else self.executor.train,
            )
            with pool.account.meters.kept_in(folder.path):
                summary = step_module(planned.kind).run(context)
            # After the run: a sample step that ran beside this one has its marker by now.
            read = self._digest_sources(planned)
            # What a program makes is told by what it read.
            summary = {"digest": content_hash(read)} | summary
            summary |= kept_meters(folder.path) | {
                "hash": planned.hash,
                "kind": planned.kind,
                "id": planned.id,
                "inputs": planned.inputs,
                "read": read,
                "seconds": round(time.monotonic() - began, 3),
            }
            model = self.store.model_path(planned.hash) if planned.makes_model else None
            folder.finish(summary, model)
        if planned.kind == "questions":
            self.posed.update(read_questions(self.store, planned.hash))
        shown.finish()

    def _digest_sources(self, planned: Planned) -> dict[str, str]:
        """What tells the records of each source from others. Steps of earlier versions lack it."""
        markers = {h: self.store.step(h).done() or {} for h in sorted(planned.sources)}
        return {h: m["digest"] for h, m in markers.items() if "digest" in m}


def _check_space(store: Store, plan: Sequence[Planned], missing: set[str]) -> None:
    """Refuse to start what the disk cannot hold.

    A train step leaves a bf16 export (2 bytes a parameter). Kept besides, at the largest, are the
    fp32 masters (4 bytes) of every seed and arm, those of one more round, and a checkpoint of
    weights and both Adam moments (3 x 4 bytes).
    """
    trains = [p for p in plan if p.makes_model and p.kind != "choose" and p.hash in missing]
    if not trains:
        return
    first = trains[0].models
    folder = whole(resolve(first.get("start", first["made"]).spec.path))
    # A start in bf16 is meant: two bytes for each parameter.
    parameters = sum(f.stat().st_size for f in folder.glob("*.safetensors")) // 2
    store.need_space(parameters * (2 * len(trains) + 4 * len(_last_trains(plan)) + 16))


def _check_gate(experiment: Experiment, rounds: Sequence[RoundRecord], planned: Planned) -> None:
    if experiment.alarms.on_alarm != "stop":
        return
    # A round counts when the last of its evaluations is there.
    place = (planned.seed, planned.round)
    rows = [r for r in rounds if (r.seed, r.round) == place and r.arm in planned.arms]
    fired = [a for r in rows for a in r.metrics["alarms"] if a["severity"] == "alarm"]
    if fired:
        raise GateStopped(
            f"stopped after round {planned.round} (alarms.on_alarm: stop):\n"
            + "\n".join(f"  {a['message']}" for a in fired)
            + "\nEverything computed is kept. Change the experiment, or set "
            "`alarms.on_alarm: continue`, and run again."
        )


def _drop_masters(
    experiment: Experiment, plan: Sequence[Planned], trained: Planned, store: Store
) -> None:
    """Delete the fp32 masters that no later train step starts from (retention.masters: last)."""
    if experiment.retention.masters == "all":
        return
    # Steps before it are done, so what only they needed can go.
    position = next(i for i, p in enumerate(plan) if p.hash == trained.hash)
    later = [p for p in plan[position + 1 :] if p.makes_model]
    wanted = {m.train_hash for p in later for role, m in p.models.items() if role != "made"}
    last = {p.models["made"].train_hash for p in _last_trains(plan)}
    for planned in plan[: position + 1]:
        if planned.makes_model and planned.hash not in wanted | last | {trained.hash}:
            shutil.rmtree(store.model_path(planned.hash) / "masters", ignore_errors=True)


def _last_trains(plan: Sequence[Planned]) -> list[Planned]:
    """The last training of every seed and arm."""
    last: dict[tuple[int, str], Planned] = {}
    for planned in plan:
        if planned.kind in ("train", "choose", "average"):
            last |= {(planned.seed, arm): planned for arm in planned.arms}
    return list(last.values())


OVERLAPPING = ("sample", "judge")


def find_stopped(plan: Sequence[Planned], store: Store) -> set[str]:
    """The hashes of steps in rounds that are not needed, since their stage stopped rising."""
    found: set[str] = set()
    for choice in plan:
        if choice.kind != "choose":
            continue
        means = round_means(choice, store)
        if not means or not has_stopped(means, choice.step.stops_rising):
            continue
        found |= {
            step.hash
            for step in plan
            if (step.seed, step.stage) == (choice.seed, choice.stage)
            and step.number > max(means)
            and is_needless(step.kind, step.arms, choice.arms)
            and step.hash != choice.hash
        }
    return found


def overlap_groups(plan: Sequence[Planned]) -> Iterator[list[Planned]]:
    """Cut the plan into groups that run one after the other: consecutive sample and judge steps
    are one group, and every other step is a group of its own, as is a judge of judgements.

    A judge step may need samples of its own group; no step needs anything else of it.
    """

    def group_of(planned: Planned) -> tuple[bool, int]:
        # Whether a round of a stage with `until` runs is known once the round before is judged.
        judged = planned.number if planned.id.startswith(f"{planned.stage}-best.") else 0
        # Judgements are compared once all of them are there.
        return planned.kind in OVERLAPPING and not planned.compares_judgements, judged

    for (together, _), run in groupby(plan, key=group_of):
        steps = list(run)
        yield from [steps] if together else ([planned] for planned in steps)


def split_group(steps: Sequence[Planned]) -> tuple[list[Planned], list[Planned]]:
    """Split a group of steps into those that run on the main thread and remote judges that run
    concurrently; both in the plan's order.

    A judge runs concurrently if only servers answer it, unless a step of the main thread asks one
    of these servers too: a server's limits are for all calls to it. If nothing would be left for
    the main thread, all steps run there.
    """
    remote = [planned for planned in steps if _is_remote_judge(planned)]
    while True:
        local = [planned for planned in steps if planned not in remote]
        shared = _list_servers(local)
        alone = [planned for planned in remote if not _list_servers([planned]) & shared]
        if len(alone) == len(remote):
            return (local, remote) if local else (remote, [])
        # A judge that moves to the main thread may bring a server that others ask too, so once
        # more.
        remote = alone


def _is_remote_judge(planned: Planned) -> bool:
    engines = {model.spec.engine for model in planned.models.values()}
    return planned.kind == "judge" and bool(engines) and engines <= REMOTE


def _list_servers(steps: Iterable[Planned]) -> set[tuple[str | None, str]]:
    """Address and name of the models on servers that are asked."""
    models = [model.spec for planned in steps for model in planned.models.values()]
    return {(spec.base_url, spec.path) for spec in models if spec.engine in REMOTE}


def run_both(
    local: Callable[[Callable[[], None]], None],
    remote: Callable[[], None],
    end_remote: Callable[[], None],
) -> None:
    """Run `local` in this thread and `remote` in another one. The first error of either ends both
    and is raised, once both have ended.

    `local` is given a function that raises what `remote` failed with, to be called now and then;
    `end_remote` makes `remote` end soon.
    """
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(remote)

        # The pool's thread raises nothing here by itself: `result` does.
        def check() -> None:
            if working.done():
                working.result()

        try:
            local(check)
            working.result()
        except BaseException:
            # On Ctrl-C too, or leaving the pool would wait for all that is left to judge.
            end_remote()
            raise
