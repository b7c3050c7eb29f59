"""YAML in, with line numbers kept, and validation errors that point at the line.

Reading is by PyYAML's safe loader; a duplicate key is refused, since the first value would be lost.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from rlaif.core.errors import HIDDEN, ConfigError, say_place, without_passwords

MOST_VALUES = 100_000
"""Keys and items of one file, aliases written out."""

_SECRET_NAME = re.compile(
    r"(^|[_-])(api_?key|key|secret|pass(word|wd|phrase)?|auth\w*|credentials?"
    r"|cookie|bearer|token|headers?|base_url)([_-]|$)",
    re.IGNORECASE,
)
"""Names under which a secret may stand."""
_SECRET = re.compile(
    r"(?i:bearer|basic)\s+[^\s'\"]{6,}|(?<=[?&])[^\s=&'\"]+=[^\s&'\"]+"
    r"|(?=[A-Za-z_-]*\d)(?=[\d_-]*[A-Za-z])[A-Za-z0-9_-]{20,}"
)
"""What looks like a secret in a text: credentials, a query, a long run of letters and digits."""
LARGEST = 10**9
"""No key of a config means a larger number, but for those in `ANY_SIZE`."""
ANY_SIZE = frozenset({"seed", "seeds", "labels", "extra_body", "engine_args"})
"""Seeds, and values that are not ours to judge."""

Loc = tuple[str | int, ...]
Lines = dict[Loc, int]
M = TypeVar("M", bound=BaseModel)


def read_text(path: Path) -> str:
    """The text of a user's file, without a byte order mark, or a ConfigError that says what is
    wrong with it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError("no such file", path) from None
    except IsADirectoryError:
        raise ConfigError("this is a folder; a file was expected", path) from None
    except PermissionError:
        raise ConfigError("this file may not be read (permission denied)", path) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text: {error}", path) from None


def load_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """The mapping in a YAML file and the line of every key and item in it."""
    text = read_text(path)
    lines: Lines = {}
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise ConfigError("the file is empty; a mapping was expected", path)
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError("expected a mapping (key: value) at the top", path, 1)
        _collect_lines(node, (), lines, path)
        data: Any = loader.construct_document(node)
        return _written_out(data), lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise ConfigError(f"not valid YAML: {error.problem}", path, line) from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        # What PyYAML makes of a date or number that is none, or of a tag that does not fit.
        raise ConfigError(f"not valid YAML: {error}", path) from None
    except RecursionError:
        fault = "an alias that contains itself, or too many levels"
        raise ConfigError(f"not valid YAML here: {fault}", path) from None


def _written_out(value: Any) -> Any:
    """The value with a copy at each alias, so that one of them can be changed alone."""
    if isinstance(value, dict):
        return {key: _written_out(item) for key, item in value.items()}
    return [_written_out(item) for item in value] if isinstance(value, list) else value


def _collect_lines(node: yaml.Node, loc: Loc, lines: Lines, path: Path) -> None:
    if len(lines) > MOST_VALUES:
        # Aliases of aliases make billions of values of a few lines.
        fault = f"more than {MOST_VALUES:,} values, aliases written out"
        raise ConfigError(fault, path, node.start_mark.line + 1)
    lines.setdefault(loc, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                raise ConfigError(f"key {name!r} is given twice", path, key.start_mark.line + 1)
            seen.add(name)
            lines[(*loc, name)] = key.start_mark.line + 1
            _collect_lines(value, (*loc, name), lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*loc, index)] = value.start_mark.line + 1
            _collect_lines(value, (*loc, index), lines, path)


def fault_at(loc: Loc, message: str) -> PydanticCustomError:
    """What the validator of a whole model raises for a fault at `loc` within it."""
    return PydanticCustomError("at", "{message}", {"message": message, "loc": loc})


def line_of(loc: Loc, lines: Lines) -> int | None:
    """The line of `loc`, or of the nearest thing around it that has one."""
    while loc and loc not in lines:
        loc = loc[:-1]
    return lines.get(loc)


def validate(
    model: type[M],
    data: Any,
    lines: Lines,
    path: Path | str,
    notes: Mapping[Loc, str] | None = None,
) -> M:
    """`data` as `model`, or one ConfigError listing every fault with its line, and with those of
    `notes` that are at its place or around it."""
    refuse_absurd(data, lines, path)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        said = _explain_errors(error, model, data, lines, path, notes or {})
        raise ConfigError(said) from None


def refuse_absurd(data: Any, lines: Lines, path: Path | str) -> None:
    """Raises ConfigError for numbers that no key can mean: infinite, none, or beyond `LARGEST`."""
    said = []
    for loc, value in _find_numbers(data, ()):
        largest = 2**63 - 1 if ANY_SIZE & set(loc) else LARGEST
        if not -largest <= value <= largest:
            line = line_of(loc, lines)
            place = f"{path}:{line}" if line else f"{path}"
            said.append(
                f"{place}: {'.'.join(map(str, loc))}: expected a finite number, of at most "
                f"{largest:,} (got {shown_value(value, loc)})"
            )
    if said:
        raise ConfigError("\n".join(said))


def _find_numbers(data: Any, loc: Loc) -> Iterator[tuple[Loc, int | float]]:
    """Every number in a document, with its place."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _find_numbers(value, (*loc, key if isinstance(key, int) else str(key)))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _find_numbers(value, (*loc, index))
    elif isinstance(data, (int, float)):
        yield loc, data


def _explain_errors(
    error: ValidationError,
    model: type[BaseModel],
    data: Any,
    lines: Lines,
    path: Path | str,
    notes: Mapping[Loc, str],
) -> str:
    """One line for each place: the members of a union say there what each of them expected."""
    said: dict[tuple[str, str], list[str]] = {}
    for fault in error.errors():
        loc = (*fault["loc"], *fault.get("ctx", {}).get("loc", ()))
        given = _trim_location(loc, data)
        where = ".".join(map(str, given))
        around = (given[:n] for n in range(1, len(given) + 1))
        note = ", ".join(dict.fromkeys(notes[outer] for outer in around if outer in notes))
        place = say_place(path, line_of(given, lines), note).removesuffix(": ")
        if fault["type"] == "extra_forbidden":
            hint = suggest(str(loc[-1]), known_keys(model, loc[:-1]))
            said[f"{place}: unknown key {where!r}{hint}", ""] = []
        elif fault["type"] == "missing":
            name = ".".join(map(str, (*given, loc[-1])))
            said[f"{place}: {name!r} is missing; it must be given", ""] = []
        else:
            reason = fault["msg"].removeprefix("Value error, ")
            if fault["type"] in ("model_type", "dict_type"):
                reason = "expected a mapping (key: value)"
            got, value = "", fault.get("input")
            if fault["type"].startswith("unknown_") and isinstance(value, dict):
                # The message names what is known.
                value = value.get(fault["type"].removeprefix("unknown_"))
                got = _suggest_near(str(value), re.findall(r"\w+", reason))
            head = f"{place}: {where or 'the file'}"
            shown = shown_value(value, loc)
            end = f" (got {shown}){got}" if shown else got
            said.setdefault((head, end), []).append(reason)
    return "\n".join(
        head + (f": {', or: '.join(dict.fromkeys(reasons))}" if reasons else "") + end
        for (head, end), reasons in said.items()
    )


def _trim_location(loc: Loc, data: Any) -> Loc:
    """`loc` without what is not in the data: names of union members, and a missing key.

    A member may have the name of a key; then it is whichever lets more of `loc` be found.
    """
    if not loc:
        return ()
    part, rest = loc[0], loc[1:]
    known = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    without = _trim_location(rest, data)
    return (
        max((part, *_trim_location(rest, data[part])), without, key=len)
        if part in known
        else without
    )


def shown_value(value: Any, loc: Loc = ()) -> str:
    """A refused value at `loc` as a message may show it: no mapping, nothing that stands under the
    name of a secret or looks like one. Empty where nothing can be shown."""
    if isinstance(value, dict) or _holds_mapping(value):
        return ""
    if any(isinstance(part, str) and names_secret(part) for part in loc[-2:]):
        return HIDDEN
    try:
        text = repr(value)
    except ValueError:
        # Python writes no integer of thousands of digits, which YAML can give in hexadecimal.
        return "a number of too many digits"
    text = without_secrets(text)
    return text if len(text) <= 80 else text[:77] + "..."


def names_secret(name: str) -> bool:
    """Whether a secret may stand under a name."""
    return name != "max_tokens_key" and _SECRET_NAME.search(name) is not None


def without_secrets(text: str) -> str:
    """`text` without passwords and what looks like a key."""
    return _SECRET.sub(HIDDEN, without_passwords(text))


def _holds_mapping(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(v, dict) or _holds_mapping(v) for v in value)


def suggest(name: str, known: list[str]) -> str:
    """'; did you mean ...?', or the list of what is known, as the end of a sentence."""
    listed = f"; known here: {', '.join(sorted(known))}" if known else ""
    return _suggest_near(name, known) or listed


def _suggest_near(name: str, known: list[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def known_keys(model: type[BaseModel], loc: Loc) -> list[str]:
    """The keys that the schema knows at `loc`, following unions by every member."""
    schema = _make_schema(model)
    definitions = schema.get("$defs", {})
    nodes: list[dict[str, Any]] = [schema]
    for part in loc:
        flat = _flatten_schema(nodes, definitions)
        # A tag or member name that pydantic put into the location narrows the union.
        named = [n for n in flat if len(flat) > 1 and _is_member(n, str(part))]
        following: list[dict[str, Any]] = []
        for node in [] if named else flat:
            if isinstance(part, int):
                following += [node["items"]] if isinstance(node.get("items"), dict) else []
            elif part in node.get("properties", {}):
                following.append(node["properties"][part])
            elif isinstance(node.get("additionalProperties"), dict):
                following.append(node["additionalProperties"])
            else:
                following += node.get("patternProperties", {}).values()
        nodes = named or following or nodes
    keys: set[str] = set()
    for node in _flatten_schema(nodes, definitions):
        keys |= set(node.get("properties", {}))
    return sorted(keys)


@lru_cache(maxsize=16)
def _make_schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(by_alias=True)


def _is_member(node: dict[str, Any], part: str) -> bool:
    if node.get("title") == part:
        return True
    constants = [p.get("const") for p in node.get("properties", {}).values()]
    return part in constants


def _flatten_schema(
    nodes: list[dict[str, Any]], definitions: dict[str, Any]
) -> list[dict[str, Any]]:
    flat: list[dict[str, Any]] = []
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if "$ref" in node:
            stack.append(definitions[node["$ref"].rsplit("/", 1)[1]])
            continue
        members = node.get("anyOf", []) + node.get("oneOf", []) + node.get("allOf", [])
        stack += members
        if not members:
            flat.append(node)
    return flat
