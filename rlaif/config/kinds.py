"""Specs that are found by a name in the experiment file, such as a judge's by its `kind`.

A table of kinds is a literal dict of `name: "module:Spec"`. Only the module of a kind that is named
is imported; the JSON schema of a field imports all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Generic, TypeVar, Union, cast

from pydantic import Discriminator, GetCoreSchemaHandler, GetJsonSchemaHandler, Tag, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from rlaif.config.base import Strict
from rlaif.core.resources import find_object

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
