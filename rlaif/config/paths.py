"""Changes of an experiment file: a path and a value.

`--set`, profiles, arms, sweeps and the rounds of `at` all change a file in this one way, before it
is validated. A path is keys joined by dots. An item of a list is named by its position, its `id`
or, among steps, its kind: `steps.train.beta`, `judges.gold.kind`, `stages.rl.rounds`. `steps` also
finds a step within `stages`.

A step may be replaced (`steps.train: {method: ipo}`: kind and id stay), left out (`null`), or give
way to several (a list of entries).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlaif.core.errors import HIDDEN, ConfigError
from rlaif.core.yamlio import Lines, Loc, line_of, names_secret, suggest, without_secrets

ENTRY_KEYS = frozenset({"when", "arms"})
"""What may stand beside the kind in an entry of `steps`."""


@dataclass(frozen=True)
class Change:
    """One value to set. `origin` says who sets it, and `loc` is where it stands in the file; None
    for the command line."""

    path: str
    value: Any
    origin: str
    loc: Loc | None = None

    def describe(self) -> str:
        """The change as a message may show it."""
        value = yaml.safe_dump(self.value, default_flow_style=True, width=200).strip()
        value = value.removesuffix("...").strip()
        if any(names_secret(part) for part in self.path.split(".")):
            value = HIDDEN
        sign = "=" if self.loc is None else ": "
        return f"{self.origin} {self.path}{sign}{without_secrets(value)}"


def read_setting(text: str) -> Change:
    """The change that `--set KEY=VALUE` asks for; the value is read as YAML.

    Raises ConfigError where it is no such text.
    """
    path, sign, value = text.partition("=")
    if not sign or not path.strip():
        raise ConfigError(
            f"--set {without_secrets(text)}: expected KEY=VALUE, such as steps.train.beta=0.2"
        )
    secret = any(names_secret(part) for part in path.split("."))
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        shown = f"{path}={HIDDEN}" if secret else without_secrets(text)
        raise ConfigError(f"--set {shown}: the value is not valid YAML") from None
    return Change(path.strip(), _read_number(read), "--set")


def _read_number(value: Any) -> Any:
    """YAML 1.1 reads 1e-5 as text; a user means the number."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def read_changes(given: Mapping[str, Any], origin: str, loc: Loc) -> list[Change]:
    """The changes of a mapping of paths that stands at `loc` of the file."""
    return [
        Change(path, _read_number(value), origin, (*loc, path)) for path, value in given.items()
    ]


def apply_changes(
    data: Mapping[str, Any], lines: Lines, changes: Sequence[Change], path: Path | None = None
) -> tuple[dict[str, Any], Lines, dict[Loc, str]]:
    """The file with all changes made in their order, the line of every key, and by place what a
    change has set there. What is given stays as it is. Raises ConfigError at the change."""
    changed = Changed(deepcopy(dict(data)), dict(lines), {}, lines, path)
    for change in changes:
        changed.apply(change)
    return changed.data, changed.lines, changed.notes


@dataclass(frozen=True)
class Changed:
    """A file under change: its data, the line of every key, what was set where, and the lines of
    the file as it was."""

    data: dict[str, Any]
    lines: Lines
    notes: dict[Loc, str]
    given: Lines
    path: Path | None

    def apply(self, change: Change) -> None:
        """Make one change in place."""
        *parents, last = change.path.split(".")
        loc: Loc = ()
        for part in parents:
            # The kind may be named too: `steps.4.train.beta`.
            if (part,) != loc[-1:] or not self._is_step(loc[:-1]):
                loc = self._enter(self._find(loc, part, change), change)
        place = self._find(loc, last, change)
        if self._is_step(place):
            self._replace_step(place, change)
            return
        self._at(loc)[place[-1]] = self._with_id(place, change.value)
        self._forget(place)
        self._note(place, change.loc, change)

    def _with_id(self, place: Loc, value: Any) -> Any:
        """A value with the id of the item of a list whose place it takes, if it has none."""
        old = self._at(place) if isinstance(place[-1], int) else None
        kept = {"id": old["id"]} if isinstance(old, dict) and "id" in old else {}
        return kept | deepcopy(value) if kept and isinstance(value, dict) else deepcopy(value)

    def _at(self, loc: Loc) -> Any:
        node: Any = self.data
        for part in loc:
            node = node[part]
        return node

    def _find(self, loc: Loc, part: str, change: Change) -> Loc:
        """The place of `part` in what is at `loc`."""
        if loc == ("steps",) or (loc[-1:] == ("steps",) and loc[:1] == ("stages",)):
            return self._find_step(loc, part, change)
        node = self._at(loc)
        if isinstance(node, dict):
            return (*loc, part)
        if not isinstance(node, list):
            raise self._refuse(change, f"nothing can be set at {change.path!r}")
        if part.isdigit() and int(part) < len(node):
            return (*loc, int(part))
        ids = [item.get("id") if isinstance(item, dict) else None for item in node]
        if ids.count(part) == 1:
            return (*loc, ids.index(part))
        known = [str(name) for name in ids if name is not None]
        what = str(loc[-1]) if loc else "the file"
        fault = f"nothing in `{what}` has the id {part!r}{suggest(part, known)}"
        raise self._refuse(change, f"{fault}; positions are from 0 to {len(node) - 1}")

    def _find_step(self, loc: Loc, part: str, change: Change) -> Loc:
        """The place of a step by position, id or kind: of the whole file, or of one stage."""
        whole_file = loc == ("steps",)
        steps = [s for s in step_places(self.data) if whole_file or s.loc[: len(loc)] == loc]
        if part.isdigit() and int(part) < len(steps):
            return steps[int(part)].loc
        found = [s for s in steps if s.id == part] or [s for s in steps if s.kind == part]
        if len(found) == 1:
            return found[0].loc
        count = "no step is" if not found else f"{len(found)} steps are"
        near = suggest(part, sorted({s.id for s in steps})) if not found else ""
        raise self._refuse(
            change,
            f"{count} called {part!r}{near}; use its position (from 0 to {len(steps) - 1}) or its "
            "id",
        )

    def _is_step(self, loc: Loc) -> bool:
        return loc[-2:-1] == ("steps",) and isinstance(loc[-1], int)

    def _enter(self, loc: Loc, change: Change) -> Loc:
        """`loc`, or the body of the step there; a key without a value becomes a mapping."""
        if loc == ("steps",) and "stages" in self.data:
            return loc
        if self._is_step(loc):
            kind = kind_of(self._at(loc))
            if kind is None:
                raise self._refuse(change, f"{'.'.join(map(str, loc))} is no step")
            loc = (*loc, kind)
        parent = self._at(loc[:-1])
        if isinstance(parent, dict) and parent.get(str(loc[-1])) is None:
            parent[str(loc[-1])] = {}
        elif isinstance(parent[loc[-1]], str) and loc[-1] == "judge":
            parent[loc[-1]] = {"id": parent[loc[-1]]}
        return loc

    def _replace_step(self, loc: Loc, change: Change) -> None:
        """A mapping takes the place of the step's body, null of the step; a list of entries stands
        where it stood."""
        *above, index = loc
        entries, entry = self._at(tuple(above)), self._at(loc)
        kind = kind_of(entry)
        if isinstance(change.value, list):
            made = deepcopy(change.value)
        elif change.value is None:
            made = []
        elif isinstance(change.value, dict) and kind is not None:
            old = entry[kind] if isinstance(entry[kind], dict) else {}
            kept = {"id": old["id"]} if "id" in old else {}
            made = [{**entry, kind: kept | deepcopy(change.value)}]
        else:
            raise self._refuse(
                change, "a step takes a mapping (its new keys), null (left out) or a list of steps"
            )
        assert isinstance(index, int)
        entries[index : index + 1] = made
        self._shift(tuple(above), index, len(made) - 1)
        for number in range(len(made)):
            whole = isinstance(change.value, list)
            place = (*above, index + number) if whole else (*above, index, str(kind))
            self._forget(place)
            inner = whole and change.loc is not None
            self._note(place, (*(change.loc or ()), number) if inner else change.loc, change)

    def _shift(self, above: Loc, index: int, by: int) -> None:
        """Move the lines and notes of the items behind `index`, and drop its own."""
        depth = len(above)
        for known in (self.lines, self.notes):
            moved: dict[Loc, Any] = {}
            for loc, value in known.items():
                at = loc[depth] if loc[:depth] == above and len(loc) > depth else None
                if isinstance(at, int) and at == index:
                    continue
                if isinstance(at, int) and at > index:
                    loc = (*above, at + by, *loc[depth + 1 :])
                moved[loc] = value
            known.clear()
            known.update(moved)

    def _forget(self, loc: Loc) -> None:
        for known in (self.lines, self.notes):
            for name in [name for name in known if name[: len(loc)] == loc]:
                del known[name]

    def _note(self, loc: Loc, source: Loc | None, change: Change) -> None:
        """The lines of a value are those where the change has it."""
        line = line_of(loc, self.lines) if source is not None and "steps" in loc else None
        self.notes[loc] = change.describe() + (f", of the step in line {line}" if line else "")
        if source is None:
            return
        for known, line in self.given.items():
            if known[: len(source)] == source:
                self.lines[(*loc, *known[len(source) :])] = line

    def _refuse(self, change: Change, why: str) -> ConfigError:
        line = None if change.loc is None else self.given.get(change.loc)
        return ConfigError(f"{change.describe()}: {why}", self.path if line else None, line)


@dataclass(frozen=True)
class StepPlace:
    """Where a step stands in the file, its kind, and its id, given or not."""

    loc: Loc
    kind: str
    id: str
    stage: str | None = None


def kind_of(entry: Any) -> str | None:
    """The kind of an entry of `steps`; None where it is none."""
    if not isinstance(entry, dict):
        return None
    kinds = [key for key in entry if key not in ENTRY_KEYS]
    return str(kinds[0]) if len(kinds) == 1 else None


def step_places(data: Mapping[str, Any]) -> Iterator[StepPlace]:
    """Every step of a file with the id that it has: its own, or by default its kind, with the
    stage's id where an earlier stage has taken that."""
    taken: set[str] = set()
    for above, stage, entries in _lists_of_steps(data):
        earlier = set(taken)
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            kind = kind_of(entry)
            if kind is None:
                continue
            body = entry[kind]
            named = body if isinstance(body, str) else None
            if isinstance(body, dict) and body.get("id") is not None:
                named = str(body["id"])
            name = named or (f"{kind}-{stage}" if kind in earlier else kind)
            taken.add(name)
            yield StepPlace((*above, index), kind, name, stage)


def _lists_of_steps(data: Mapping[str, Any]) -> Iterator[tuple[Loc, str | None, Any]]:
    if isinstance(data.get("stages"), list):
        for number, stage in enumerate(data["stages"]):
            if isinstance(stage, dict):
                yield ("stages", number, "steps"), str(stage.get("id")), stage.get("steps")
    else:
        yield ("steps",), None, data.get("steps")
