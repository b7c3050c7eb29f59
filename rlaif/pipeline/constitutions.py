"""The constitutions of a run: its own, and those that arms and judges have in its place; and
whether their rules may run the code of answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

from rlaif.constitution.code_rule import RULE, refusal
from rlaif.constitution.model import Constitution, principle_hash
from rlaif.core.errors import ConfigError
from rlaif.core.records import content_hash
from rlaif.core.yamlio import Loc, line_of, suggest
from rlaif.judges.common import JudgeInputs
from rlaif.pipeline.plan.base import PlanInputs


class HasManifest(Protocol):
    """A run folder's path and its manifest."""

    root: Path
    manifest: dict[str, Any]


def hash_constitution(constitution: Constitution) -> str:
    """What tells a constitution from others: its principles, in their order."""
    return content_hash([principle_hash(p) for p in constitution.principles])


def other_constitutions(inputs: PlanInputs) -> dict[str, Constitution | None]:
    """The constitutions beside the file's own, by whose they are: `judge ID`, `arm NAME`, and
    `arm NAME judge ID` of a judge that has another in that arm. None where an arm has none."""
    found: dict[str, Constitution | None] = {
        f"judge {name}": own for name, own in inputs.constitutions.items()
    }
    for arm, file in inputs.arms.items():
        if file.constitution != inputs.constitution:
            found[f"arm {arm}"] = file.constitution
        for name in sorted({*file.constitutions, *inputs.constitutions} & file.judges.keys()):
            own = file.constitutions.get(name)
            if own != inputs.constitutions.get(name):
                found[f"arm {arm} judge {name}"] = own
    return found


def other_judges(inputs: PlanInputs) -> dict[str, dict[str, str]]:
    """By arm, the hashes of the judges that differ from the file's own."""
    own = {name: judge.judge_hash for name, judge in inputs.judges.items()}
    found = {
        arm: {n: j.judge_hash for n, j in file.judges.items() if own.get(n) != j.judge_hash}
        for arm, file in inputs.arms.items()
    }
    return {arm: judges for arm, judges in found.items() if judges}


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


def run_constitution(run: HasManifest, arm: str | None = None) -> Constitution:
    """The constitution that the run used, or that one arm of it did. Raises ConfigError where there
    was none."""
    found = _main_of(run, arm)
    if found is None:
        which = "this run" if arm is None else f"arm {arm} of this run"
        raise ConfigError(f"{which} has no constitution", run.root)
    return found


def has_constitution(run: HasManifest, arm: str | None = None) -> bool:
    """Whether the run, or one arm of it, has a constitution."""
    return _main_of(run, arm) is not None


def judges_constitutions(run: HasManifest, arm: str | None = None) -> dict[str, Constitution]:
    """The constitutions of the judges that have one of their own, in one arm if it is named."""
    held = run.manifest.get("constitutions", {})
    own = _strip(held, "judge ")
    if arm is not None:
        own |= _strip(held, f"arm {arm} judge ")
    return {name: Constitution.model_validate(row) for name, row in own.items() if row is not None}


def run_weights(run: HasManifest, arm: str | None = None) -> dict[str, float]:
    """Each principle's weight by id, and by JUDGE/PRINCIPLE those of judges that have a
    constitution of their own; empty without any constitution."""
    main = _main_of(run, arm)
    found = principle_weights(main) if main else {}
    for judge, own in sorted(judges_constitutions(run, arm).items()):
        found |= {f"{judge}/{name}": weight for name, weight in principle_weights(own).items()}
    return found


def arms_alike(run: HasManifest, arm: str | None = None) -> tuple[list[str], list[str]]:
    """The arms with the run's own constitutions, or `arm` alone where it is named, and the arms
    that are left out. Raises ConfigError for an arm that the run does not have."""
    every = list(run.manifest["arms"]) or list(
        dict.fromkeys(name for step in run.manifest["steps"] for name in step["arms"])
    )
    if arm is not None:
        refuse_unknown_arm(run, arm)
        return [arm], []
    held = run.manifest.get("constitutions", {})
    others = {key.split(" ")[1] for key in held if key.startswith("arm ")}
    return [n for n in every if n not in others], [n for n in every if n in others]


def refuse_unknown_arm(run: HasManifest, arm: str) -> None:
    """Raise ConfigError for an arm that the run does not have."""
    known = list(run.manifest["arms"])
    if arm not in known:
        said = suggest(arm, known) or f" (arms: {', '.join(known) or 'none'})"
        raise ConfigError(f"this run has no arm {arm!r}{said}", run.root)


def principle_weights(constitution: Constitution) -> dict[str, float]:
    """Each principle's weight by id."""
    return {p.id: p.weight for p in constitution.principles}


def constitution_texts(run: HasManifest) -> dict[str, str]:
    """The run's constitutions as YAML by whose they are; the run's own under an empty name."""
    held = {"": run.manifest["constitution"], **run.manifest.get("constitutions", {})}
    return {whose: _as_yaml(row) for whose, row in held.items() if row}


def _as_yaml(constitution: Mapping[str, Any]) -> str:
    cleaned = {k: v for k, v in constitution.items() if k != "principles"}
    cleaned["principles"] = [
        {k: v for k, v in p.items() if v not in (None, [], {})} for p in constitution["principles"]
    ]
    return yaml.safe_dump(cleaned, sort_keys=False, allow_unicode=True, width=90)


def _main_of(run: HasManifest, arm: str | None) -> Constitution | None:
    held = run.manifest.get("constitutions", {})
    row = held.get(f"arm {arm}", run.manifest["constitution"])
    return None if not row else Constitution.model_validate(row)


def _strip(held: Mapping[str, Any], start: str) -> dict[str, Any]:
    return {key[len(start) :]: row for key, row in held.items() if key.startswith(start)}
