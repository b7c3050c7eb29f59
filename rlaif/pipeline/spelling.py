"""An experiment's file with its short forms spelt out, written with every key, and its schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from rlaif.config.paths import step_places
from rlaif.core.errors import ConfigError
from rlaif.core.yamlio import Lines, Loc, line_of, suggest, validate
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.stages import StepEntry


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


def resolved_yaml(experiment: Experiment) -> str:
    """The experiment with every default written out, as it is kept in the run folder."""
    # Profiles are sizes of the file and a sweep is a way to write arms; a run has one size.
    data = experiment.model_dump(mode="json", by_alias=True, exclude={"profiles", "sweep"})
    arms = experiment.arms.values()
    # With arms it is they that say who labels.
    apart = arms and all(arm.labels is not None for arm in arms)
    if experiment.stages is None:
        data["steps"] = _resolved_steps(experiment, experiment.steps, bool(apart))
    else:
        for stage, written in zip(experiment.stages, data["stages"], strict=True):
            written["steps"] = _resolved_steps(experiment, stage.steps, bool(apart))
    data["arms"] = {
        name: arm.model_dump(mode="json", exclude_defaults=True)
        for name, arm in experiment.arms.items()
    }
    single = ("steps", "rounds") if experiment.stages is not None else ("stages",)
    unset = {key for key in ("seeds", "primary") if data[key] is None} | {*single}
    data = {key: value for key, value in data.items() if key not in unset}
    if "seeds" in data:
        data.pop("seed", None)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def _resolved_steps(
    experiment: Experiment, entries: Sequence[StepEntry], arms_label: bool
) -> list[dict[str, Any]]:
    """The entries with all keys. A judge of `judges` stays named, so that a change of it there is a
    change of the step."""
    defined = {judge.id for judge in experiment.judges}
    found = []
    for e in entries:
        wanted = {"id", "uses"} if e.kind == "judge" and e.step.id in defined else None
        apart = {"labels", "flip"} if arms_label and e.kind == "label" else None
        body = e.step.model_dump(mode="json", by_alias=True, include=wanted, exclude=apart)
        beside = e.model_dump(mode="json", include={"when", "arms"}, exclude_none=True)
        found.append({e.kind: body, **beside})
    return found


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
