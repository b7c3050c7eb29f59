"""A constitution: the principles by which answers are judged, read from YAML.

name: house-style
version: "2"
extends: helpful.yaml            # or a list; files are merged in order, this one last
principles:
  - id: brief
    text: Choose the response that says what is needed in fewer words.
    weight: 0.5
    check: {rule: word_limits, params: {min: 12, max: 45}}
  - id: steps                    # of helpful.yaml: only the fields given here change
    applies_when: {tags: [howto]}
  - id: warm                     # of helpful.yaml: not wanted here
    remove: true
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from rlaif.constitution import textstats
from rlaif.constitution.rules import RULES, resolved_params, validate_check
from rlaif.core.errors import ConfigError
from rlaif.core.records import Prompt, content_hash
from rlaif.core.resources import find
from rlaif.core.yamlio import Lines, load_yaml, suggest, validate

ASKED_FIELDS = ("text", "scale", "applies_when", "examples")
"""The fields that can change what a model says."""
CHECKED_FIELDS = ("applies_when", "check")
"""The fields that can change what a program says."""
JUDGED_FIELDS = ("text", "scale", "applies_when", "check", "examples")
"""The fields that can change a judgement."""

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
_STRICT = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Check(BaseModel):
    """A program that scores the answer: a rule's name and its parameters."""

    model_config = _STRICT
    rule: str = Field(
        description=(
            "A name in `rlaif.constitution.rules.RULES`, or `package.module:name` of your own."
        )
    )
    params: dict[str, Any] = Field(default={}, description="The rule's parameters.")

    @model_validator(mode="after")
    def _validate_rule(self) -> Check:
        validate_check(self.rule, self.params)
        return self


class Example(BaseModel):
    """A worked comparison: `better` is preferred to `worse` as an answer to `prompt`."""

    model_config = _STRICT
    prompt: str = Field(min_length=1)
    better: str = Field(min_length=1)
    worse: str
    why: str | None = None

    @model_validator(mode="after")
    def _refuse_equal_texts(self) -> Example:
        if self.better == self.worse:
            raise ValueError("`better` and `worse` are the same text")
        return self


class AppliesWhen(BaseModel):
    """When a principle counts. With both conditions given, both must hold."""

    model_config = _STRICT
    tags: tuple[str, ...] = Field(default=(), description="The prompt has at least one of these.")
    pattern: str | None = Field(
        default=None,
        description="A regular expression found in the last user turn, in either case.",
    )

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            textstats.compile_pattern(pattern, ignore_case=True)
        return pattern

    @model_validator(mode="after")
    def _require_condition(self) -> AppliesWhen:
        if not self.tags and self.pattern is None:
            raise ValueError("give `tags`, `pattern` or both")
        return self


class Principle(BaseModel):
    """One thing that makes an answer better. It has a `text`, a `check`, or both."""

    model_config = _STRICT
    id: Slug
    text: str = Field(default="", description="The text that a model judges by.")
    critique: str | None = Field(default=None, description="A request for criticism, for revising.")
    revision: str | None = Field(default=None, description="A request for a better answer.")
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    applies_when: AppliesWhen | None = None
    scale: dict[int, str] | None = Field(default=None, description="What each level means.")
    check: Check | None = None
    examples: tuple[Example, ...] = ()

    def applies(self, prompt: Prompt) -> bool:
        """Whether the principle counts for this prompt."""
        when = self.applies_when
        if when is None:
            return True
        if when.tags and not set(when.tags) & set(prompt.tags):
            return False
        return when.pattern is None or textstats.matches(when.pattern, prompt.question, True)


def principle_hash(principle: Principle, fields: Collection[str] = JUDGED_FIELDS) -> str:
    """The hash of what can change a judgement: of `fields`, a check's defaults filled in.

    The weight, critique, revision and id are left out, as are comments and descriptions.
    """
    value = principle.model_dump(mode="json", include=set(fields))
    if principle.check is not None and "check" in fields:
        value["check"]["params"] = resolved_params(principle.check.rule, principle.check.params)
    if principle.applies_when is not None:
        value["applies_when"]["tags"] = sorted(set(principle.applies_when.tags))
    return content_hash(value)


class Constitution(BaseModel):
    """A list of principles with different ids. `extends` names files already merged in."""

    model_config = _STRICT
    name: str = Field(min_length=1)
    version: str = "1"
    description: str = ""
    extends: tuple[str, ...] = ()
    principles: tuple[Principle, ...]

    @model_validator(mode="after")
    def _check_principles(self) -> Constitution:
        if not self.principles:
            raise ValueError("a constitution needs at least one principle")
        ids = [p.id for p in self.principles]
        twice = sorted({i for i in ids if ids.count(i) > 1})
        if twice:
            raise ValueError(f"principle ids must differ; given twice: {', '.join(twice)}")
        for principle in self.principles:
            if not principle.text and principle.check is None:
                raise ValueError(
                    f"principle {principle.id!r} has neither `text` nor `check`; give one"
                )
        return self

    def select(self, ids: Sequence[str] | None) -> list[Principle]:
        """The principles named, in that order and each once; all of them for None."""
        if ids is None:
            return list(self.principles)
        known = {p.id: p for p in self.principles}
        for name in ids:
            if name not in known:
                hint = suggest(name, list(known))
                raise ConfigError(f"constitution {self.name!r} has no principle {name!r}{hint}")
        return [known[name] for name in dict.fromkeys(ids)]


class _Entry(Principle):
    remove: bool = Field(default=False, description="Remove the inherited principle.")

    @model_validator(mode="after")
    def _bare_removal(self) -> _Entry:
        if self.remove and self.model_fields_set - {"id", "remove"}:
            raise ValueError("`remove: true` stands alone with the `id`")
        return self


class _File(BaseModel):
    """A constitution as written: principles may be partial where the file extends others."""

    model_config = _STRICT
    name: str = Field(min_length=1)
    version: str = "1"
    description: str = ""
    extends: str | list[str] = Field(default=[], description="Constitution files to inherit from.")
    principles: list[_Entry] = []

    @field_validator("version", mode="before")
    @classmethod
    def _as_written(cls, version: Any) -> Any:
        if type(version) is float:
            raise ValueError('put the version in quotes: YAML reads 1.10 as 1.1, "1.10" as written')
        return str(version) if isinstance(version, int) else version

    @property
    def parents(self) -> list[str]:
        return [self.extends] if isinstance(self.extends, str) else self.extends


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: a file and a 1-based line."""

    path: Path
    line: int | None


@dataclass(slots=True)
class _Merged:
    principles: dict[str, Principle] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)


def load_constitution(path: str | Path) -> Constitution:
    """The constitution in a YAML file, with what it extends merged in.

    Files are merged in the order of mention, parents before children, each once. An entry with the
    id of an earlier principle replaces the fields it gives (whole fields; null clears one). Raises
    ConfigError with file and line.
    """
    return load_with_places(Path(path))[0]


def load_with_places(path: Path) -> tuple[Constitution, dict[str, Place]]:
    """The constitution, and for each principle's id the place that last changed it."""
    files: dict[Path, tuple[_File, Lines, Path]] = {}
    _collect_files(path, (), files)
    merged = _Merged()
    for file, lines, shown in files.values():
        for index, entry in enumerate(file.principles):
            _apply_entry(entry, Place(shown, lines.get(("principles", index))), merged)
    own = files[path.resolve()][0]
    for name, principle in merged.principles.items():
        if not principle.text and principle.check is None:
            place = merged.places[name]
            raise ConfigError(
                f"principle {name!r} has neither `text` nor `check`; give one", *_split_place(place)
            )
    if not merged.principles:
        raise ConfigError("no principles; list at least one under `principles`", path)
    constitution = Constitution(
        name=own.name,
        version=own.version,
        description=own.description,
        extends=tuple(own.parents),
        principles=tuple(merged.principles.values()),
    )
    return constitution, merged.places


def _split_place(place: Place) -> tuple[Path, int | None]:
    return place.path, place.line


def _collect_files(
    path: Path, above: tuple[Path, ...], files: dict[Path, tuple[_File, Lines, Path]]
) -> None:
    """Add the file's parents, then the file, unless they are there already."""
    real = path.resolve()
    if real in files:
        return
    data, lines = load_yaml(path)
    file = validate(_File, data, lines, path)
    _refuse_duplicates(file, lines, path)
    for index, name in enumerate(file.parents):
        line = lines.get(("extends", index)) or lines.get(("extends",))
        try:
            parent = find(name, beside=path)
        except ConfigError as error:
            raise ConfigError(f"extends: {error}", path, line) from None
        if parent.is_dir():
            raise ConfigError(f"extends: {name!r} is a folder; name a file", path, line)
        if parent.resolve() in (*above, real):
            circle = [p.name for p in (*above, real, parent.resolve())]
            raise ConfigError(
                f"extends runs in a circle: {' -> '.join(circle)}; remove one of them", path, line
            )
        _collect_files(parent, (*above, real), files)
    files[real] = (file, lines, path)


def _refuse_duplicates(file: _File, lines: Lines, path: Path) -> None:
    first: dict[str, int | None] = {}
    for index, entry in enumerate(file.principles):
        line = lines.get(("principles", index))
        if entry.id in first:
            raise ConfigError(
                f"principle id {entry.id!r} is already used on line {first[entry.id]}; "
                "rename one of them",
                path,
                line,
            )
        first[entry.id] = line


def _apply_entry(entry: _Entry, place: Place, merged: _Merged) -> None:
    if entry.remove:
        if entry.id not in merged.principles:
            hint = suggest(entry.id, list(merged.principles))
            raise ConfigError(f"no principle {entry.id!r} to remove{hint}", *_split_place(place))
        del merged.principles[entry.id], merged.places[entry.id]
        return
    given = {name: getattr(entry, name) for name in entry.model_fields_set - {"remove"}}
    earlier = merged.principles.get(entry.id)
    base = {} if earlier is None else {n: getattr(earlier, n) for n in earlier.model_fields_set}
    merged.principles[entry.id] = Principle(**(base | given))
    merged.places[entry.id] = place


def show_constitution(constitution: Constitution) -> str:
    """The resolved constitution as YAML without defaults; it loads to the same principles."""
    data = constitution.model_dump(mode="json", exclude_defaults=True, exclude={"extends"})
    for row, principle in zip(data["principles"], constitution.principles, strict=True):
        if principle.scale is not None:
            # JSON mode makes the levels strings.
            row["scale"] = dict(principle.scale)
    head = ""
    if constitution.extends:
        head = f"# resolved; extends {', '.join(constitution.extends)}\n"
    body = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=96)
    return head + body.replace("\n- id: ", "\n\n- id: ")


def reweight_principles(constitution: Constitution, weights: Mapping[str, float]) -> Constitution:
    """The same with these weights by principle id; others keep theirs."""
    principles = [
        p.model_copy(update={"weight": weights.get(p.id, p.weight)})
        for p in constitution.principles
    ]
    return constitution.model_copy(update={"principles": tuple(principles)})


def summarise_constitution(constitution: Constitution) -> list[dict[str, str]]:
    """One row per principle for people: id, weight, who judges it, when it counts, what it says."""
    total = sum(p.weight for p in constitution.principles) or 1.0
    return [
        {
            "principle": p.id,
            "weight": f"{p.weight:g} ({p.weight / total:.0%})",
            "judged by": " or ".join(_judged_by(p)),
            "when": _describe_condition(p.applies_when),
            "revise": "yes" if p.critique and p.revision else "no",
            "text": p.text,
        }
        for p in constitution.principles
    ]


def _judged_by(principle: Principle) -> list[str]:
    check = principle.check
    made = []
    if check is not None:
        params = ", ".join(f"{k}={v}" for k, v in check.params.items())
        made.append(f"{check.rule}({params})")
    return made + (["a model"] if principle.text else [])


def _describe_condition(condition: AppliesWhen | None) -> str:
    if condition is None:
        return "always"
    parts = [f"tags {', '.join(condition.tags)}"] if condition.tags else []
    return " and ".join(parts + ([f"/{condition.pattern}/"] if condition.pattern else []))


def constitution_schema() -> dict[str, Any]:
    """The JSON Schema of a constitution file, with every rule's parameters spelled out."""
    schema = _File.model_json_schema()
    definitions = schema["$defs"]
    options = []
    for name, rule in RULES.items():
        params = rule.params.model_json_schema()
        params.pop("title", None)
        options.append(
            {
                "type": "object",
                "properties": {"rule": {"const": name}, "params": params},
                "required": ["rule", *(["params"] if params.get("required") else [])],
                "additionalProperties": False,
            }
        )
    own = {"rule": {"type": "string", "pattern": ":"}, "params": {"type": "object"}}
    options.append(
        {"type": "object", "properties": own, "required": ["rule"], "additionalProperties": False}
    )
    definitions["Check"] = {"title": "Check", "description": Check.__doc__, "oneOf": options}
    definitions["Principle"] = {**definitions.pop("_Entry"), "title": "Principle"}
    schema["properties"]["principles"]["items"] = {"$ref": "#/$defs/Principle"}
    schema["title"] = "Constitution"
    return schema
