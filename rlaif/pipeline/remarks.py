"""What a plan makes for nothing: outputs that no step uses, and arms that are identical.

None of it is wrong in itself, so it is said; `--strict` refuses it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence, Set

from rlaif.core.errors import ConfigError
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.plan.base import PlanInputs, Planned

THERE_FOR_THEMSELVES = frozenset({"evaluate", "bench", "arena", "compare", "logprobs"})
"""Kinds of steps whose output is for people, or belongs to one that is."""


def list_remarks(inputs: PlanInputs, plan: Sequence[Planned]) -> list[str]:
    """A sentence for each step of which nothing is used in some round, and for arms alike."""
    return [*_unused(inputs, plan), *_alike(plan)]


def refuse_remarks(inputs: PlanInputs, plan: Sequence[Planned]) -> None:
    """Raise ConfigError with all remarks, where there are any."""
    found = list_remarks(inputs, plan)
    if found:
        raise ConfigError("--strict: " + "\n".join(found), inputs.path)


def _unused(inputs: PlanInputs, plan: Sequence[Planned]) -> Iterator[str]:
    read: set[str] = set()
    for planned in plan:
        # An evaluation shows its round's samples and pairs, which does not make them useful.
        shown = {h for name, h in planned.inputs.items() if name.startswith("train/")}
        read |= planned.sources - shown
    makers = ("train", "choose", "average")
    last = {(p.seed, arm): p.hash for p in plan if p.kind in makers for arm in p.arms}
    read |= set(last.values())
    if not last:
        # Without a policy to train, the reward models are what it is about.
        read |= {p.hash for p in plan if p.kind == "distill"}
    kept = set(list_kept(inputs.experiment))
    idle: dict[tuple[str, str], set[int]] = defaultdict(set)
    left = dict(_left_policies(plan, read))
    for one, other in left.values():
        idle[_say_left(one, other), other.stage].add(other.number)
    for planned in plan:
        if planned.hash in left:
            continue
        name = planned.id.partition("/")[0]
        for_itself = planned.kind in THERE_FOR_THEMSELVES or {planned.kind, name} & kept
        if not for_itself and "." not in name and planned.hash not in read:
            what = f"{planned.kind} {name}: no step uses what it makes"
            idle[what, planned.stage].add(planned.number)
    for (what, _), numbers in idle.items():
        rounds = ", ".join(map(str, sorted(numbers)))
        yield f"{what} (round {rounds} of its stage)"


def list_kept(experiment: Experiment) -> tuple[str, ...]:
    """The kinds or ids of steps whose records are there although no step uses them: what the
    dataset is made of, and loads whose held-out part a bench reads by itself."""
    benched = [entry.bench.pairs for entry in experiment.entries if entry.bench is not None]
    if experiment.dataset is None:
        return tuple(benched)
    uses = experiment.dataset.uses
    made_of = ("pair", "label", "filter", "load") if uses is None else (uses,)
    return (*made_of, *benched)


def _left_policies(
    plan: Sequence[Planned], read: Set[str]
) -> Iterator[tuple[str, tuple[Planned, Planned]]]:
    """Steps whose policy the next training of the policy does not start from, and nothing else
    uses: by hash, with that next one."""
    last: dict[tuple[int, str], Planned] = {}
    for planned in plan:
        if planned.kind not in ("train", "choose", "average"):
            continue
        trains = planned.kind == "train"
        if planned.kind != "choose" and not planned.step.policy:
            continue
        for arm in planned.arms:
            before = last.get((planned.seed, arm))
            if trains and before is not None and before.hash not in read:
                yield before.hash, (before, planned)
            last[planned.seed, arm] = planned


def _say_left(one: Planned, other: Planned) -> str:
    return (
        f"train {other.id}: it starts from `{other.step.from_}`, which leaves the policy that "
        f"{one.kind} {one.id} made just before unused"
    )


def _alike(plan: Sequence[Planned]) -> Iterator[str]:
    """Arms that have all their steps in common are one policy under several names."""
    steps: dict[str, set[str]] = defaultdict(set)
    for planned in plan:
        for arm in planned.arms if planned.kind != "compare" else ():
            steps[arm].add(planned.hash)
    groups: dict[frozenset[str], list[str]] = defaultdict(list)
    for arm, hashes in steps.items():
        groups[frozenset(hashes)].append(arm)
    for arms in groups.values():
        if len(arms) > 1:
            yield f"arms {', '.join(arms)} are identical: nothing differs between them"
