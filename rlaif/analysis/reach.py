"""How far a change of the constitution reaches into a run: what is judged again, what flips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.analysis.whatif import Effect, effect, left_out_words, load_pairings
from rlaif.config.models import thinking_of
from rlaif.constitution.lint import find_stale_principles, list_changes
from rlaif.constitution.model import Constitution
from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Prompt
from rlaif.judges.base import Judge, is_staged
from rlaif.judges.build import build_judge
from rlaif.metrics.intervals import show_interval
from rlaif.pipeline.constitutions import (
    arms_alike,
    judges_constitutions,
    principle_weights,
    run_constitution,
    run_weights,
)
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.runs import Run
from rlaif.pipeline.steps.asking import Kept
from rlaif.pipeline.steps.context import ByPrompt


@dataclass(frozen=True, slots=True)
class JudgeReach:
    """One judge of the run, and what the same experiment does with its `judgements`.

    `unchanged` of its calls are found again, `asked` are questions to models that are not, at
    least (what follows from their answers is not known), and `made` are calls that a program
    answers anew; `kept`: there are none of both. `fault` says why the judge cannot be built: the
    new constitution lacks what it asks about, or a file that the experiment names is no longer
    there."""

    judge: str
    kept: bool
    judgements: int
    unchanged: int
    asked: int = 0
    made: int = 0
    fault: str | None = None

    def __str__(self) -> str:
        if self.fault is not None:
            return f"{self.judge}: cannot be built from here: {self.fault}"
        if self.kept:
            return f"{self.judge}: {self.judgements} judgements kept"
        again = [f"{self.asked} questions asked again"] if self.asked else []
        again += [f"{self.made} answers of a program made again"] if self.made else []
        return f"{self.judge}: {', '.join(again)}, {self.unchanged} answers kept"


@dataclass(frozen=True, slots=True)
class Reach:
    """`effect` is that of new weights and removed principles, by stored judgements: it needs no
    model. The principles in `unknown` are new or changed: what they will say is not in it.
    `same_start`: the run used the constitution that the change starts from. `arms_left_out` have
    another constitution than the run's own."""

    judges: tuple[JudgeReach, ...]
    effect: Effect
    unknown: tuple[str, ...]
    same_start: bool
    arms_left_out: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """For people, a line each."""
        if not self.same_start:
            yield "the run did not use the first constitution; what follows starts from its own"
        for judge in self.judges:
            yield str(judge)
        found = self.effect
        rate = "" if found.flip_rate is None else show_interval(found.flip_rate.to_json())
        yield (
            f"of {found.preferences} preferences {found.flipped} flip, {found.tied} become ties, "
            f"{found.missing} lose a score; flip rate {rate}"
        )
        if found.other_pairs is not None:
            shown = show_interval(found.other_pairs.to_json())
            yield f"share of prompts that get other pairs: {shown}"
        if self.unknown:
            yield f"not in these figures, since a judge has to say: {', '.join(self.unknown)}"
        if self.arms_left_out:
            yield left_out_words(self.arms_left_out)


def measure_reach(
    run: Run, before: Constitution, after: Constitution, arm: str | None = None
) -> Reach:
    """What going from `before` to `after` does to a run: to the arms with its own constitution, or
    to `arm`. A judge with a constitution of its own keeps it. Raises ConfigError when the run has
    no constitution or no finished pairs made from judgements."""
    own = run_constitution(run, arm)
    found = list_changes(own, after, _named_principles(run.experiment(arm)))
    unknown = find_stale_principles(found)
    old, new = run_weights(run, arm), principle_weights(after)
    weights = old | {p.id: new.get(p.id, 0.0) for p in own.principles}
    return Reach(
        tuple(_reach_of_judges(run, arm, after)),
        effect(load_pairings(run, arm), old, weights),
        tuple(p.id for p in after.principles if p.id in unknown),
        not list_changes(own, before),
        tuple(arms_alike(run, arm)[1]),
    )


def _named_principles(experiment: Experiment) -> frozenset[str]:
    """The principles of the experiment's constitution that a judge that asks models names, or a
    judge within one."""
    judges = [spec for spec in experiment.all_judges().values() if spec.constitution is None]
    specs = [s for spec in judges for s in _with_inner(spec)]
    return frozenset(n for s in specs if s.kind != "rules" for n in s.principles or ())


def _with_inner(spec: Any) -> Iterator[Any]:
    """A judge's spec, and those of a jury's members or of what a meta-judge judges."""
    yield spec
    inner = [*getattr(spec, "of", ()), *filter(None, [getattr(spec, "judge", None)])]
    for own in inner:
        yield from _with_inner(own)


def _reach_of_judges(run: Run, arm: str | None, after: Constitution) -> Iterator[JudgeReach]:
    experiment, apart = run.experiment(arm), judges_constitutions(run, arm)
    # Files that the experiment names are looked for beside it; an older run does not say where.
    beside = run.root / run.manifest.get("experiment_path", run.manifest["experiment"])
    prompts = run.prompt_records()
    steps = _judge_steps(run, arm)
    thinking = thinking_of(experiment.models.values())
    for name, spec in experiment.all_judges().items():
        folders = steps.get(name, [])
        stored = sum(run.store.step(step["hash"]).count("judgements") for step in folders)
        own = apart.get(name)
        if own is not None:
            spec = spec.model_copy(update={"constitution": None})
        try:
            judge = build_judge(spec, own or after, beside, thinking, experiment.all_judges())
        except ConfigError as error:
            yield JudgeReach(name, False, stored, 0, fault=str(error))
            continue
        counts: Counter[str] = Counter()
        for step in folders:
            counts += _count_calls(run, step, judge, prompts)
        again = counts["asked"] + counts["made"]
        yield JudgeReach(
            name, not again, stored, counts["unchanged"], counts["asked"], counts["made"]
        )


def _judge_steps(run: Run, arm: str | None) -> dict[str, list[Mapping[str, Any]]]:
    """The judge steps of the arms that are looked at, by the judge that their judgements name. What
    evaluates an arm is the run's own, so of `arm` only its own steps count."""
    arms = set(arms_alike(run, arm)[0])
    found: dict[str, list[Mapping[str, Any]]] = {}
    for step in run.manifest["steps"]:
        counted = arms & set(step["arms"]) and (arm is None or run.spec_of(step) is not None)
        if step["kind"] == "judge" and counted:
            row = next(run.store.step(step["hash"]).rows("judgements"), None)
            if row is not None:
                found.setdefault(row["judge"], []).append(step)
    return found


def _count_calls(
    run: Run, step: Mapping[str, Any], judge: Judge, prompts: Mapping[str, Prompt]
) -> Counter[str]:
    """How many calls of a judge step a judge would find again, ask and make: the calls that it
    makes about the same answers, beside the ids of those that are stored."""
    folder = run.store.step(step["hash"])
    kept = Kept(folder)
    judged = folder.index("judgements", "prompt_id")
    judged.grow()
    sources = [run.store.step(digest) for digest in step["inputs"].values()]
    answers = ByPrompt(sources, Completion)
    counts: Counter[str] = Counter()
    for name in sorted(judged.keys()):
        # A filter's step holds again what it was given.
        given = list({c.completion_id: c for c in answers.of(name)}.values())
        counts += _of_prompt(judge, prompts[name], given, step["seed"], kept)
    return counts


def _of_prompt(
    judge: Judge, prompt: Prompt, answers: Sequence[Completion], seed: int, kept: Kept
) -> Counter[str]:
    counts: Counter[str] = Counter()
    staged = is_staged(judge)
    known: Container[str] = kept.answers if staged else kept.judgements
    calls = judge.calls(prompt, answers, seed)
    new = calls
    while new:
        for call in {call.call_id: call for call in new}.values():
            if call.call_id in known:
                counts["unchanged"] += 1
            elif call.request is None:
                counts["made"] += not staged
            else:
                counts["asked"] += 1 + (call.then is not None)
        # What is asked further depends on answers, which are all there or not known.
        if counts["asked"] or not is_staged(judge):
            break
        new = judge.follow(calls, kept.answers, seed)
        calls = [*calls, *new]
    return counts
