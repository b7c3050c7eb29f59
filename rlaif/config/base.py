"""What config classes share: bounds of values, what a hash covers, and specs found by a name.

A table of kinds, such as a judge's `kind`, is a literal dict of `name: "module:Spec"`. Only the
module of a kind that is named is imported; the JSON schema of a field imports all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Generic, TypeVar, Union, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    TypeAdapter,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from rlaif.core.resources import find_object

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Temperature = Annotated[float, Field(ge=0.0, le=100.0)]
"""Of sampling; 0 is greedy."""
Count = Annotated[int, Field(ge=1, le=10_000)]
"""Of what is made all at once: answers to a prompt, rounds, open calls."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""Of random choices. NumPy takes none below 0, and torch none of 64 bits or more."""
StepId = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
PluginName = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]


class Strict(BaseModel):
    """A frozen model that refuses unknown keys, and prints nothing of what it refuses."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, hide_input_in_errors=True
    )


def list_names(value: Any) -> Any:
    """One name as a list of it; anything else as it is."""
    return [value] if isinstance(value, str) else value


ONE_OR_MORE = BeforeValidator(list_names, json_schema_input_type=str | list[str] | None)
"""A list of names that may be written as its only one."""


class Late:
    """Marks a key that was added after the first version: `Annotated[int, LATE]`. A hash covers it
    only where its value is not its default, so that steps of older files keep theirs."""


LATE = Late()


def hashed_keys(
    spec: BaseModel, exclude: Collection[str] = (), include: Collection[str] | None = None
) -> dict[str, Any]:
    """What a spec's keys say, JSON-ready, for the hash of what they decide. Late keys that have
    their default are left out, also those of specs within it."""
    found = spec.model_dump(
        mode="json", exclude=set(exclude), include=None if include is None else set(include)
    )
    return cast(dict[str, Any], _without_late(spec, found))


def _without_late(value: Any, dumped: Any) -> Any:
    """`dumped`, which was made of `value`, without late keys at their defaults."""
    if isinstance(value, BaseModel) and isinstance(dumped, dict):
        fields = type(value).model_fields
        late = {
            name
            for name, field in fields.items()
            if LATE in field.metadata and getattr(value, name) == field.get_default()
        }
        inner = ((name, getattr(value, name, None)) for name in dumped if name not in late)
        return {name: _without_late(part, dumped[name]) for name, part in inner}
    if isinstance(value, Mapping) and isinstance(dumped, dict):
        # Keys of JSON are text, in the same order.
        pairs = zip(value.values(), dumped.items(), strict=True)
        return {name: _without_late(part, item) for part, (name, item) in pairs}
    if isinstance(value, (list, tuple)) and isinstance(dumped, list):
        return [_without_late(*both) for both in zip(value, dumped, strict=True)]
    return dumped


def told(model: Strict, *names: str) -> list[str]:
    """Those of the keys that say something, sorted: with another value than their default, since a
    resolved file has all keys."""
    fields = type(model).model_fields
    return sorted(n for n in names if getattr(model, n) != fields[n].get_default())


S = TypeVar("S", bound=Strict)


class SpecTable(Mapping[str, type[S]], Generic[S]):
    """The spec class of every kind of a table; looking one up imports its module."""

    def __init__(self, rows: Mapping[str, str]):
        self.rows = rows

    def __getitem__(self, name: str) -> type[S]:
        return cast(type[S], find_object(self.rows[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class OneOf:
    """Annotates a field whose value is of one of a table's classes: `Annotated[Base, OneOf(...)]`.

    `key` of the value names its kind, `default` where it has none; `name_kind` finds the name in
    another way. A name that the table lacks is refused with `unknown`, as an error of type
    `unknown_{key}`.
    """

    table: SpecTable[Any]
    key: str
    unknown: str
    default: str | None = None
    name_kind: Callable[[Any], str] | None = None

    def _read_kind(self, value: Any) -> str:
        if isinstance(value, dict):
            return str(value.get(self.key, self.default))
        return str(getattr(value, self.key, self.default))

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        rows = self.table.rows.items()
        choices = [Annotated[Any, SpecAt(spec), Tag(name)] for name, spec in rows]
        named = Discriminator(
            self.name_kind or self._read_kind,
            custom_error_type=f"unknown_{self.key}",
            custom_error_message=self.unknown,
        )
        return handler.generate_schema(Annotated[Union[tuple(choices)], named])  # noqa: UP007


@dataclass(frozen=True)
class NameIn:
    """Annotates a field whose value is one of the names of a table."""

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.literal_schema(list(self.names))


_described: set[SpecAt] = set()
"""Specs whose JSON schema is being made: one that holds itself, as a jury of juries, is referred
to."""


@dataclass(frozen=True)
class SpecAt:
    """Annotates a field whose value is of the type at "module:Spec", imported when there is one."""

    reference: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate_spec)

    def _validate_spec(self, value: Any) -> Any:
        return _adapter_of(self.reference).validate_python(value)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        described = cast(Any, _adapter_of(self.reference).core_schema)
        if self in _described:
            return handler(core_schema.definition_reference_schema(described["ref"]))
        _described.add(self)
        try:
            # Within definitions, the class gets a definition of its own.
            return handler(core_schema.definitions_schema(described, []))
        finally:
            _described.remove(self)


@cache
def _adapter_of(reference: str) -> TypeAdapter[Any]:
    return TypeAdapter(find_object(reference))
