"""Steps whose output nothing reads: refused, since what they ask is paid for all the same."""

from __future__ import annotations

from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.plan.walk import Walk

WHAT = {
    "sample": "answers",
    "filter": "records",
    "judge": "judgements",
    "load": "records",
    "pair": "pairs",
    "label": "pairs",
}


def refuse_unread(walk: Walk) -> None:
    """Refuse what another step took the place of before any step read it, and judges of loaded
    pairs that no step labels or chooses from. What is last of its kind may be wanted for itself.
    Raises ConfigError at the step."""
    read = {digest for planned in walk.done for digest in planned.inputs.values()}
    dataset = walk.experiment.dataset
    wanted = {dataset.uses} if dataset is not None else set()
    for planned, by in walk.replaced.values():
        if planned.hash not in read and planned.id not in wanted:
            raise walk.inputs.fail(_index(walk, planned), _unread(planned, by))
    _refuse_idle_pairs(walk)


def _unread(planned: Planned, by: str) -> str:
    what = WHAT[planned.kind]
    other = f"Name it in `uses` of the step that should read it, or remove it or {by!r}"
    remedy = {
        "sample": "Sample all answers in one step (`pool` names several models), judge these "
        "before that step, or remove this one",
        "judge": f"Put it after {by!r}, or remove it",
    }.get(planned.kind, other)
    return (
        f"no step reads the {what} of {planned.id!r}: step {by!r} takes their place before one "
        f"does. {remedy}"
    )


def _refuse_idle_pairs(walk: Walk) -> None:
    """Refuse a judge of loaded pairs where no step makes anything of these."""
    loaded = {
        p.hash: p
        for p in walk.done
        if p.kind == "load" and p.step.type == "pairs" and p.id == p.step.id
    }
    used = {
        digest
        for planned in walk.done
        if planned.kind in ("label", "pair", "filter")
        for digest in planned.inputs.values()
    }
    for judge in walk.done:
        own = [h for name, h in judge.inputs.items() if name.startswith("completions/")]
        idle = next((loaded[h] for h in own if h in loaded and h not in used), None)
        if judge.kind == "judge" and judge.id == judge.step.id and idle is not None:
            raise walk.inputs.fail(
                _index(walk, judge),
                f"judge {judge.id!r} judges the pairs that {idle.id!r} loads, and no step uses "
                "them: add `label` after it, or `pair`. How good a judge is on labelled pairs is "
                "measured by `rlaif judge-bench`",
            )


def _index(walk: Walk, planned: Planned) -> int:
    """The place of a step in the experiment; members of a pool are called ID/NUMBER."""
    name = planned.id.partition("/")[0]
    return next(i for i, e in enumerate(walk.experiment.steps) if e.step.id == name)
