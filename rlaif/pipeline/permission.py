"""Whether an experiment may run the code of answers, told before anything runs."""

from __future__ import annotations

from collections.abc import Iterator

from rlaif.constitution.code_rule import RULE, refusal
from rlaif.core.errors import ConfigError
from rlaif.core.yamlio import Loc, line_of
from rlaif.judges.common import JudgeInputs
from rlaif.pipeline.plan.base import PlanInputs


def refuse_code(inputs: PlanInputs) -> None:
    """Raises ConfigError where a judge, a filter or an evaluation would run answers' code, and the
    experiment does not say `allow_code`."""
    if inputs.experiment.allow_code:
        return
    for place, what, rule in _list_rules(inputs):
        if rule == RULE:
            line = line_of(place, inputs.lines)
            raise ConfigError(refusal(f"rule {RULE!r}"), inputs.path, line, what)


def _list_rules(inputs: PlanInputs) -> Iterator[tuple[Loc, str, str]]:
    """Each rule that the experiment runs, its place in the file, and whose it is."""
    experiment = inputs.experiment
    for name, spec in experiment.all_judges().items():
        constitution = inputs.constitutions.get(name, inputs.constitution)
        for rule in spec.rules(JudgeInputs(constitution, inputs.path)):
            yield experiment.loc_of(name), f"judge {name}", rule
    for place, entry in zip(experiment.step_locs, experiment.entries, strict=True):
        if entry.filter is not None:
            for own in entry.filter.filters:
                if own.kind == "rule":
                    yield (*place, "filter"), f"filter {entry.filter.id}", own.rule
        if entry.evaluate is not None:
            for check in entry.evaluate.checks:
                yield (*place, "evaluate"), f"check {check.id}", check.rule
