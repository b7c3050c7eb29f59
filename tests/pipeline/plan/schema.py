"""Every key that an experiment file can have, read off the config classes themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from rlaif.config.base import OneOf, SpecAt
from rlaif.core.resources import find_object
from rlaif.pipeline.experiment_file import Experiment

KINDS = ("kind", "method")
"""Keys that say which class a spec is of: their other values are other rows of the sweep."""


def classes(root: type[BaseModel] = Experiment) -> list[type[BaseModel]]:
    """The classes of all specs that an experiment may hold, each once, from the outside in."""
    found: list[type[BaseModel]] = []
    left = [root]
    while left:
        owner = left.pop(0)
        if owner not in found:
            found.append(owner)
            for field in owner.model_fields.values():
                left += _list_classes(field.annotation, field.metadata)
    return found


def keys(owner: type[BaseModel]) -> list[str]:
    """The names of a class's keys but for the one that chooses the class."""
    fields = owner.model_fields
    chosen = {name for name in KINDS if name in fields and _is_fixed(fields[name].annotation)}
    return [name for name in fields if name not in chosen]


def _is_fixed(annotation: Any) -> bool:
    return annotation is not str and len(get_args(annotation)) <= 1


def _list_classes(annotation: Any, metadata: Iterable[Any] = ()) -> list[type[BaseModel]]:
    """The config classes that a type is made of. Where its metadata names a table of kinds, those
    of the table stand in place of their base."""
    tables = [said.table for said in metadata if isinstance(said, OneOf)]
    if tables:
        return [spec for table in tables for spec in table.values()]
    named = [find_object(said.reference) for said in metadata if isinstance(said, SpecAt)]
    if named:
        return [spec for kind in named for spec in _list_classes(kind)]
    if get_origin(annotation) is Annotated:
        return _list_classes(get_args(annotation)[0], annotation.__metadata__)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [spec for part in get_args(annotation) for spec in _list_classes(part)]
