"""An experiment's file read: with a profile and settings, for each arm, and in the rounds of `at`.

All of these change the file in one way, by paths and values (see `config.paths`), in this order:
the profile, the arm, the sweep, `--set`; then `at` in its rounds. Later ones win.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from rlaif.config.arms import MAIN, ArmSpec
from rlaif.config.paths import Change, apply_changes, read_changes, read_setting, step_places
from rlaif.core.errors import ConfigError
from rlaif.core.yamlio import Lines, Loc, line_of, load_yaml, suggest, validate
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.stages import StepEntry, in_rounds

FIXED = ("name", "description", "seed", "seeds", "prompts", "prompt_sets", "primary", "margin")
"""What is one for all arms, so that their policies are measured alike and can be compared."""


@dataclass(frozen=True)
class FileOfArm:
    """The file as an arm has it, and the line of every key. `at` has the steps of the rounds in
    which `at` changes some, by the place of the stage and the round within it."""

    experiment: Experiment
    lines: Lines
    at: Mapping[tuple[int, int], list[StepEntry]] = field(default_factory=dict)


def load_experiment(
    path: str | Path, overrides: Sequence[str] = (), profile: str | None = None
) -> tuple[Experiment, Lines]:
    """The experiment in `path` with a profile of its own and then `a.b=c` overrides applied, and
    the line of every key; what its arms set is not looked at. Raises ConfigError."""
    own = _Written.read(Path(path), overrides, profile).own
    return own.experiment, own.lines


def load_arms(
    path: str | Path, overrides: Sequence[str] = (), profile: str | None = None
) -> tuple[FileOfArm, dict[str, FileOfArm]]:
    """The file itself, and by name the arms that set keys in it. Raises ConfigError."""
    written = _Written.read(Path(path), overrides, profile)
    return written.own, {name: written.of_arm(name) for name, made in written.made.items() if made}


@dataclass(frozen=True)
class _Written:
    """A file as it is written, and `own`, what it says with its profile and settings. `made` are
    the changes of each arm, those of a sweep spread out."""

    path: Path
    data: Mapping[str, Any]
    lines: Lines
    chosen: Sequence[Change]
    settings: Sequence[Change]
    own: FileOfArm
    made: Mapping[str, Sequence[Change]]

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str], profile: str | None) -> _Written:
        data, lines = load_yaml(path)
        settings = [read_setting(setting) for setting in overrides]
        chosen = [] if profile is None else _profile_changes(data, profile, path)
        own = _read(data, lines, [*chosen, *settings], path)
        arms = _changes_by_arm(own, path)
        if own.experiment.sweep:
            own = _with_arms(own, {name: arm for name, (arm, _) in arms.items()}, path)
        made = {name: changes for name, (_, changes) in arms.items()}
        kept = {n: _without_overridden(a, settings) for n, a in own.experiment.arms.items()}
        own = replace(own, experiment=own.experiment.model_copy(update={"arms": kept}))
        return cls(path, data, lines, chosen, settings, own, made)

    def of_arm(self, name: str) -> FileOfArm:
        """The file as an arm has it."""
        changes = [*self.chosen, *self.made[name], *self.settings]
        one = _read(self.data, self.lines, changes, self.path)
        arms = self.own.experiment.arms
        found = _with_arms(one, arms, self.path)
        _refuse_other_yardstick(self.own.experiment, found, name, self.made[name], self.path)
        return found


def _without_overridden(arm: ArmSpec, settings: Sequence[Change]) -> ArmSpec:
    """The arm without the values that the command line has set to others: a run folder keeps the
    file as it was run."""
    paths = [setting.path for setting in settings]
    own = {p: v for p, v in arm.set.items() if not any(f"{p}.".startswith(f"{o}.") for o in paths)}
    return arm.model_copy(update={"set": own})


def _with_arms(file: FileOfArm, arms: Mapping[str, ArmSpec], path: Path) -> FileOfArm:
    """The file with these arms and no sweep: where a stage or a step names an arm, it means all
    that a sweep has made of it. Raises ConfigError for a name of none."""
    experiment = file.experiment

    def spell_out(names: Sequence[str] | None, loc: Loc, note: str) -> list[str] | None:
        if names is None:
            return None
        found: dict[str, None] = {}
        for name in names:
            own = [n for n in arms if n == name or _arm_of(n, experiment) == name]
            if not own:
                hint = suggest(name, sorted({*arms, *experiment.arms}))
                raise ConfigError(
                    f"arms: {name!r} is no arm{hint}", path, line_of(loc, file.lines), note
                )
            found |= dict.fromkeys(own)
        return list(found)

    def with_names(entries: Sequence[StepEntry], above: Loc) -> list[StepEntry]:
        found = []
        for index, entry in enumerate(entries):
            names = spell_out(entry.arms, (*above, index, "arms"), f"step {entry.step.id}")
            found.append(entry.model_copy(update={"arms": names}))
        return found

    update: dict[str, Any] = {"arms": dict(arms), "sweep": {}}
    if experiment.stages is None:
        update["steps"] = with_names(experiment.steps, ("steps",))
    else:
        update["stages"] = [
            stage.model_copy(
                update={
                    "arms": spell_out(stage.arms, ("stages", number, "arms"), f"stage {stage.id}"),
                    "steps": with_names(stage.steps, ("stages", number, "steps")),
                }
            )
            for number, stage in enumerate(experiment.stages)
        ]
    at = {key: with_names(entries, ("stages", key[0], "steps")) for key, entries in file.at.items()}
    return FileOfArm(experiment.model_copy(update=update), file.lines, at)


def _arm_of(name: str, experiment: Experiment) -> str:
    """The arm of the file that an arm of the sweep was made of, which is called NAME-VALUES."""
    made = [arm for arm in experiment.arms if name.startswith(f"{arm}-")]
    return max(made, key=len, default=MAIN)


def _read(
    data: Mapping[str, Any], lines: Lines, changes: Sequence[Change], path: Path
) -> FileOfArm:
    changed, lines, notes = apply_changes(data, lines, changes, path)
    experiment = read_experiment(changed, lines, path, notes)
    at: dict[tuple[int, int], list[StepEntry]] = {}
    for number, stage in enumerate(experiment.stages or ()):
        known: dict[tuple[str, ...], list[StepEntry]] = {}
        for turn in range(1, stage.rounds + 1):
            keys = tuple(rounds for rounds in stage.at if in_rounds(rounds, turn))
            if keys and keys not in known:
                own = _changes_at(changed, lines, number, keys, path)
                again, places, said = apply_changes(changed, lines, own, path)
                stages = read_experiment(again, places, path, said).stages
                assert stages is not None, "the file has stages, and `at` changes values"
                known[keys] = stages[number].steps
            if keys:
                at[number, turn] = known[keys]
    return FileOfArm(experiment, lines, at)


def _changes_at(
    data: Mapping[str, Any], lines: Lines, number: int, keys: Sequence[str], path: Path
) -> list[Change]:
    """The changes of a stage's `at` that hold in a round. Raises ConfigError for a path that is no
    value of one of its steps."""
    stage = data["stages"][number]
    own = {p.id for p in step_places(data) if p.loc[:2] == ("stages", number)}
    own |= {p.kind for p in step_places(data) if p.loc[:2] == ("stages", number)}
    found: list[Change] = []
    for given, values in stage["at"].items():
        if str(given) not in keys:
            continue
        loc: Loc = ("stages", number, "at", str(given))
        for change in read_changes(values, f"at {given}", loc):
            head, _, rest = change.path.partition(".")
            step, _, key = rest.partition(".")
            if head != "steps" or step not in own or not key or key == "id":
                raise ConfigError(
                    f"{change.describe()}: `at` takes values of this stage's steps, such as "
                    f"steps.{min(own)}.KEY",
                    path,
                    line_of((*loc, change.path), lines),
                )
            inner = f"stages.{stage['id']}.steps.{rest}"
            found.append(Change(inner, change.value, change.origin, change.loc))
    return found


def _profile_changes(data: Mapping[str, Any], profile: str, path: Path) -> list[Change]:
    profiles = data.get("profiles")
    known = profiles if isinstance(profiles, dict) else {}
    given = known.get(profile)
    if not isinstance(given, dict):
        fault = f"--profile {profile}: the file has no such profile"
        raise ConfigError(fault + (suggest(profile, sorted(map(str, known))) or ""), path)
    return read_changes(given, f"profile {profile}", ("profiles", profile))


def _changes_by_arm(own: FileOfArm, path: Path) -> dict[str, tuple[ArmSpec, list[Change]]]:
    """Every arm, those of the sweep spread out, with what it sets."""
    found: dict[str, tuple[ArmSpec, list[Change]]] = {}
    sweep = own.experiment.sweep
    for name, arm in (own.experiment.arms or {MAIN: ArmSpec()}).items():
        changes = read_changes(arm.set, f"arm {name}", _loc_of_arm(name, own.lines))
        if not sweep:
            found[name] = (arm, changes)
            continue
        for places in product(*(range(len(values)) for values in sweep.values())):
            swept = [
                *(
                    change
                    for key, place in zip(sweep, places, strict=True)
                    for change in [_swept(key, sweep[key], place)]
                )
            ]
            label = ",".join(map(_name_value, swept, places))
            whole = label if name == MAIN else f"{name}-{label}"
            if whole in found:
                line = line_of(("sweep",), own.lines)
                raise ConfigError(f"sweep: two arms would be called {whole!r}", path, line)
            values = arm.set | {change.path: change.value for change in swept}
            found[whole] = (arm.model_copy(update={"set": values}), [*changes, *swept])
    return found


def _swept(key: str, values: Sequence[Any], place: int) -> Change:
    (change,) = read_changes({key: values[place]}, "sweep", ("sweep",))
    return Change(change.path, change.value, "sweep", ("sweep", key, place))


def _name_value(change: Change, place: int) -> str:
    """A value of a sweep as part of an arm's name: `beta=0.1`; by its place where it is no short
    text or number."""
    key = change.path.rpartition(".")[2]
    text = yaml.safe_dump(change.value, default_flow_style=True).strip().removesuffix("...").strip()
    text = text.rpartition("/")[2].removesuffix(".yaml")
    plain = all(letter.isascii() and (letter.isalnum() or letter in "_.-") for letter in text)
    return f"{key}={text if plain and 0 < len(text) <= 40 else place + 1}"


def _loc_of_arm(name: str, lines: Lines) -> Loc:
    """Where the values of an arm stand. One of `labels_used` is called NAME-COUNT."""
    for loc in lines:
        if loc[:1] == ("arms",) and loc[-1] == "set" and len(loc) in (3, 4):
            given = str(loc[-2])
            if name == given or name.rpartition("-")[0] == given:
                return loc
    return ("arms", name, "set")


def _refuse_other_yardstick(
    own: Experiment, arm: FileOfArm, name: str, changes: Sequence[Change], path: Path
) -> None:
    """Raise ConfigError where an arm changes what measures all arms: prompts, seeds, evaluations
    and the judges that these ask."""
    other = arm.experiment
    fault = next((key for key in FIXED if getattr(own, key) != getattr(other, key)), None)
    what = f"`{fault}`"
    if fault is None:
        fault = _find_other_measure(own, other)
        what = fault or ""
    if fault is None:
        return
    named = fault.rpartition(" ")[2].strip("`")
    guilty = next((c for c in changes if named in c.path.split(".")), changes[0])
    line = None if guilty.loc is None else line_of(guilty.loc, arm.lines)
    raise ConfigError(
        f"arm {name}: {guilty.describe()}: {what} measures all arms, and must be the same in each. "
        "Change it for the whole file, or let two judges with ids of their own evaluate",
        path,
        line,
    )


_MEASURES = ("evaluate", "bench", "arena")
"""Kinds of steps that measure all arms alike."""


def _find_other_measure(own: Experiment, other: Experiment) -> str | None:
    """The evaluation, bench or arena, or the judge that one asks, that is another in `other`."""
    known = {entry.step.id: entry.step for entry in own.entries if entry.kind in _MEASURES}
    for entry in other.entries:
        if entry.kind in _MEASURES and known.get(entry.step.id) != entry.step:
            return f"{entry.kind} {entry.step.id}"
    judges, others = own.all_judges(), other.all_judges()
    for asked in _judges_asked(own):
        if asked in others and judges[asked] != others[asked]:
            return f"judge {asked}"
    return None


def _judges_asked(experiment: Experiment) -> Iterator[str]:
    """The judges that evaluations, benches and arenas ask."""
    judges = experiment.all_judges()
    for entry in experiment.entries:
        if entry.evaluate is not None:
            wanted = entry.evaluate.judges
            yield from (j for j in (judges if wanted is None else wanted) if j in judges)
        if entry.bench is not None:
            yield from (judge for judge in entry.bench.judges if judge in judges)
        if entry.arena is not None and entry.arena.judge in judges:
            yield entry.arena.judge


def read_experiment(
    data: Mapping[str, Any], lines: Lines, path: Path, notes: Mapping[Loc, str] | None = None
) -> Experiment:
    """An experiment's file, which was read, with its short forms spelt out. Raises ConfigError."""
    spelt_out = _with_step_ids(_with_judges_by_id(data, lines, path))
    return validate(Experiment, spelt_out, lines, path, _notes_of_ids(spelt_out, notes or {}))


def _notes_of_ids(data: Mapping[str, Any], notes: Mapping[Loc, str]) -> dict[Loc, str]:
    """What stands at each step and judge of the file, besides the notes on what was set."""
    found: dict[Loc, str] = {}
    for place in step_places(data):
        entry: Any = data
        for part in place.loc:
            entry = entry[part]
        found[place.loc] = f"step {_id_of_judge(entry.get('judge')) or place.id}"
    judges = data.get("judges")
    for index, judge in enumerate(judges if isinstance(judges, list) else []):
        found["judges", index] = f"judge {_id_of_judge(judge) or index}"
    for loc, note in notes.items():
        found[loc] = f"{found[loc]}, {note}" if loc in found else note
    return found


def _id_of_judge(body: Any) -> str | None:
    """A judge's id, which is its kind where it has none; None where the body is no judge's."""
    named = body.get("id", body.get("kind")) if isinstance(body, dict) else None
    return named if isinstance(named, str) else None


def _with_step_ids(data: dict[str, Any]) -> dict[str, Any]:
    """The file with the ids that steps have where an earlier stage has taken their kind's."""
    data = deepcopy(data)
    for place in step_places(data):
        entries: Any = data
        for part in place.loc[:-1]:
            entries = entries[part]
        entry = entries[place.loc[-1]]
        if place.id != place.kind and not isinstance(entry[place.kind], str):
            body = entry[place.kind] if isinstance(entry[place.kind], dict) else {}
            entry[place.kind] = {"id": place.id, **body}
    return data


def _with_judges_by_id(data: Mapping[str, Any], lines: Lines, path: Path) -> dict[str, Any]:
    """The file with `judge: ID` and `judge: {id: ID, uses: ...}` spelt out, where `judges` defines
    the judge of that id. Raises ConfigError at a step that names none, or says more of it."""
    spelt_out = deepcopy(dict(data))
    judges = data.get("judges")
    given = [j for j in judges if isinstance(j, dict)] if isinstance(judges, list) else []
    known = {judge["id"]: judge for judge in given if isinstance(judge.get("id"), str)}
    for place in step_places(data):
        entry: Any = spelt_out
        for part in place.loc:
            entry = entry[part]
        body = entry.get("judge")
        named = {"id": body} if isinstance(body, str) else body
        if not isinstance(named, dict) or "kind" in named or not isinstance(named.get("id"), str):
            continue
        name, line = named["id"], line_of((*place.loc, "judge"), lines)
        if name not in known:
            fault = f"judge {name!r}: no judge of `judges` has that id, and no `kind` is given"
            raise ConfigError(fault + suggest(name, sorted(known)), path, line)
        more = sorted(named.keys() - {"id", "uses"})
        if more:
            raise ConfigError(
                f"judge {name!r} is defined in `judges`: only `uses` may stand beside its id "
                f"(got {', '.join(more)})",
                path,
                line,
            )
        entry["judge"] = {**known[name], **named}
    return spelt_out


def experiment_schema() -> str:
    """The JSON schema of an experiment file, for editors."""
    schema = Experiment.model_json_schema(by_alias=True)
    by_id: dict[str, Any] = {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "uses": {"type": ["array", "null"], "items": {"type": "string"}},
        },
        "required": ["id"],
        "additionalProperties": False,
    }
    named = "A judge that `judges` defines, by its id."
    schema["$defs"]["StepEntry"]["properties"]["judge"]["anyOf"] += [
        {"type": "string", "description": named},
        by_id | {"description": named},
    ]
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2)
